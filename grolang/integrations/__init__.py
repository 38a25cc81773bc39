"""Other people's losses: their own code, run and compared with the methods here. Imported only on request."""
