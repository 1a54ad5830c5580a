{"username":"pull-bot","password":"secret1"}
