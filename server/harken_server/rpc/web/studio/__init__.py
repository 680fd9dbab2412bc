"""The studio: a page on the HTTP port that shows what the models make of texts, and the server at work."""
