"""A verified bundle as one HTML page for people who decide: no script, nothing fetched, prints well.

    markup      elements whose text is always escaped
    charts      SVG pictures
    facts       what the pictures show, computed from the certificate
    sections    the parts of the page
    document    the whole page, and writing it

Trusts: bundles that `sealgate.certificate.bundle` verified. Never: shows anything that the publisher did not sign or
that was not computed here from it.
"""
