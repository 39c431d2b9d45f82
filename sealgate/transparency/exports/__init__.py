"""Records of the log in the forms that other systems take in. Each line is a pure function of one leaf and its index.

    leaves       a leaf at its place: what every form is made of
    ndjson       one JSON object a line; the leaf's exact bytes are in it, so it can be hashed again
    csv_table    for spreadsheets: nothing in it starts a formula
    syslog       RFC 5424 messages
    cloudevents  CloudEvents 1.0, JSON
    ocsf         Open Cybersecurity Schema Framework 1.9
    formats      the list of them, and what a file of each looks like
    weight       how much notice a record deserves
    part         how much of a file that was cut off is there, so that it can be gone on with

A line proves nothing by itself: an evidence bundle does (`sealgate.transparency.bundle`). But every form carries the
leaf, or all of it, so that a line can be compared with the log.
"""
