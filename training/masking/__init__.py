"""Masking: what is taken off the rows before anything else sees them, column by column, by rules that are public.

`sections` reads the rules, `columns` applies them, `personal` finds what identifies people in free text, and
`anonymity` counts how many rows share their quasi-identifiers. Every row is treated by itself, so masking leaves what
differential privacy counts as a row what it was. It replaces nothing of it: masked rows are not anonymous.
"""
