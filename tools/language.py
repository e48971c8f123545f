"""List words that code and documents avoid, because the field has its own word or a plainer one exists."""

import re

WORDS = {  # what to avoid, as a word or as a part of a name: what to write instead
    "pictures?": "image",
    "callers?|askers?": "client",
    "(who|whom)(so)?ever|(no|every|any|some)body": "clients that, every client, no process, …",
    "(clients?|servers?|process(es)?|threads?|requests?|models?|programs?|workers?) (who|whom)": "that, which",
    "rude(ness|ly)?": "misbehaving",
    "story": "report, description, summary",
    "patien(ce|t|tly)": "wait, timeout, retry",
    "lettering": "text",
    "twins?": "copy, variant, streaming model",
    "surfaces?": "interface, API",
    "by (gRPC|HTTP)": "over gRPC, over HTTP",
    "beside": "next to, besides, at the same time as",
    "(?<!leave it )(?<!leaves it )(?<!leave them )(?<!left )alone": "only, by itself",
    "(colour|neighbour|behaviour|favour|honour)(s|ed|ing|ful)?": "color, neighbor, behavior, …",
    "centred?|grey|licence|artefacts?|catalogue|analyse[sd]?": "the American spelling",
    "(normal|quant|initial|serial|optim|recogn|token|organ|summar|minim|maxim|custom|util|visual|categor|synchron|emphas"
    "|special|parametr)is(e|es|ed|er|ing|ation)": "-ize, -ization",
}
PATTERNS = {
    **{re.compile(rf"(?<![A-Za-z])(?:{avoid})(?![a-z])", re.IGNORECASE): write for avoid, write in WORDS.items()},
    re.compile(r'"""(Of|As) '): "an imperative verb",
}
EXEMPT = re.compile(r"(#|//|<!--).*\bsic\b")


def words_to_avoid(text: str) -> list[str]:
    """Return `line number: word -> what to write` for each word to avoid, except in lines whose comment says `sic`."""
    return [
        f"{number}: {hit[0]!r} -> {write}"
        for number, line in enumerate(text.splitlines(), 1)
        if not EXEMPT.search(line)
        for pattern, write in PATTERNS.items()
        for hit in pattern.finditer(line)
    ]
