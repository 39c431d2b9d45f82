"""What auditors ask of a log, as pure functions of its records: the same answer from a bundle as from the database.

`catalogue` names them and begins one; each is a fold that sees records in order; `bundles` runs one over an evidence
bundle while that is verified. Trusts: whoever shows the records, and every report says who that was and what it proves.
Never: reads a clock, a file or a database itself.
"""
