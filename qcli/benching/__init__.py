"""`qcli bench`: how fast models are beside each other, where their time goes and how much memory they take."""
