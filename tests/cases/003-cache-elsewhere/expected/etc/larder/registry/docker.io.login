{"username":"pull-bot","password":"it's a \"secret\" #1"}
