"""The embedded AMT against the API's documentation: what a client may send, and what it gets.

Requests go over the wire as they are, past every check of a client. Where the service model's error lists
and what AWS answers differ, AWS counts: its own clients are written against that.
"""
