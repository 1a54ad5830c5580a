{"username":"bot","password":"it's a #secret"}
