"""A local page on which a picture is dropped, and classes are typed.

Comes in: a `Model`, and requests from a browser. Goes out: the page, and ranked classes as JSON.
May import predict and what it imports.
"""
