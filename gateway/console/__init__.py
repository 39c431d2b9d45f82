"""The auditors' pages at `/console`: server-rendered, on the same ways into the log as the API.

`router` puts it together; `pages` are what auditors see, `sign_in` how they come in, `sessions` how they stay, and
`proof_path` the drawing of a proof. Static files and templates are package data beside them; nothing comes from
elsewhere. Trusts: the gate for who may read what. Never: reads anything that the API would not show the same caller.
"""
