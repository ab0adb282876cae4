"""The web page: HTML made on the server, over the same functions and rules as the API's routes.

A page's route takes a `caller` as the API's do. Its router has `PageRoute`, which answers errors
with a page, and a request without a valid key with the way to sign in.
"""
