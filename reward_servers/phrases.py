"""The things that a prompt names, as phrases: what attribute binding is asked about.

T2I-CompBench (Huang et al. 2023, arXiv:2307.06350) takes the noun chunks of spaCy's
`en_core_web_sm`. Where spaCy is not installed, `by_rule` cuts a prompt at the words that join
things. The two agree on prompts made of plain phrases and joining words, such as "a red car and a
blue house"; the rule leaves verbs within a phrase, and knows no grammar.
"""

import re
from collections.abc import Callable

Phrases = Callable[[str], list[str]]
_JOINS = (
    "and|or|with|on top of|on|in front of|in|at|of|by|under|beside|behind|above|below|near|over|"
    "next to|inside|between|left of|right of|to the left of|to the right of|on the left of|"
    "on the right of|on side of|on the side of|on the bottom of|is|are|has|have|while"
)
# The longest joining words first, for some begin with others.
_CUT = re.compile(
    r"[,.;:!?]|\b(?:" + "|".join(sorted(_JOINS.split("|"), key=len, reverse=True)) + r")\b",
    re.IGNORECASE,
)
# Places that are no things. Those of the benchmark are dropped from spaCy's chunks, as they stand.
_BENCHMARK_PLACES = frozenset({"top", "the side", "the left", "the right"})
_PLACES = _BENCHMARK_PLACES | {"the top", "side", "bottom"}


def by_rule(prompt: str) -> list[str]:
    """Phrases between joining words and punctuation, in their order."""
    parts = (" ".join(part.split()) for part in _CUT.split(prompt))
    return [part for part in parts if part and part.lower() not in _PLACES]


def by_spacy(model: str = "en_core_web_sm") -> Phrases:
    """spaCy's noun chunks, as the benchmark has them.

    Raises:
        ValueError: spaCy or its model is not installed.
    """
    try:
        import spacy  # type: ignore[import-not-found]  # optional

        nlp = spacy.load(model)
    except (ImportError, OSError) as error:
        raise ValueError(
            f"phrases: spacy needs spaCy and its model {model!r}: {error}. Install both, or take "
            "phrases: rule"
        ) from error
    return lambda prompt: [
        chunk.text for chunk in nlp(prompt).noun_chunks if chunk.text not in _BENCHMARK_PLACES
    ]


def question_of(phrase: str) -> str:
    """As the benchmark asks: the phrase with a question mark, in BLIP's plain spelling."""
    plain = re.sub(r'[.!"()*#:;~]', "", f"{phrase}?".lower())
    return " ".join(plain.split())
