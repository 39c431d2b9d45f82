"""Why a name may be erased, in the words of the law: light, because the command line offers them.

Trusts nothing. Never: decides whether a ground holds; that is the operator's word, and goes on record.
"""

from __future__ import annotations

GROUNDS: dict[str, str] = {
    "no-longer-needed": "(a) not needed any more for what it was collected for",
    "consent-withdrawn": "(b) consent was withdrawn, and there is no other ground to keep it",
    "objection": "(c) the person objected, and nothing weighs more",
    "unlawful": "(d) it was processed unlawfully",
    "legal-duty": "(e) a law asks for the erasure",
    "child": "(f) it was collected from a child",
}
"""Why a name may be erased: GDPR Article 17(1)."""
