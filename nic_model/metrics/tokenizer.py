"""COCO's tokeniser in Python: what Stanford's PTBTokenizer makes of a caption, lower-cased, punctuation dropped.

Same tokens as `pycocoevalcap` 1.2, which runs CoreNLP 3.4.1 in Java (`-preserveLines -lowerCase`). The grammar was
found by comparing with it. It works as lexers do: at each position the rule that matches most text wins, the text it
only looks at included, and the earlier rule among equals.
"""

from collections.abc import Callable
from functools import lru_cache

import regex

# What COCO drops. Brackets stay, as -lrb- and the like, for COCO looks for "-LRB-" after lower-casing.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# Characters, as the Unicode of 2010 has them. Marks make words with letters, but no compounds; a symbol is a token;
# any other character that no rule takes, such as an emoji, ends a token and is dropped.
_MARKS = (
    r"\u00ad\u02c2-\u02c5\u02d2-\u02df\u02e5-\u02eb\u02ed\u02ef-\u036f\u0375\u0378-\u0379\u0384-\u0385"
    r"\u03f6\u0483-\u0487\u055a-\u055f\u0591-\u05bd\u05bf\u05c1-\u05c2\u05c4-\u05c5\u05c7\u0615-\u061a"
    r"\u064b-\u065e\u0670\u06d6-\u06e4\u06e7-\u06ed\u06fd-\u06fe\u070f\u0711\u0730-\u074c\u07a6-\u07b0"
    r"\u07eb-\u07f3\u0900-\u0903\u093c\u093e-\u094e\u0951-\u0955\u0962-\u0963\u0981-\u0983\u09bc"
    r"\u09be-\u09c4\u09c7-\u09c8\u09cb-\u09cd\u09d7\u09e2-\u09e3\u0a01-\u0a03\u0a3c\u0a3e-\u0a4f"
    r"\u0a81-\u0a83\u0abc\u0abe-\u0acf\u0b82\u0bbe-\u0bc2\u0bc6-\u0bc8\u0bca-\u0bcd\u0c01-\u0c03"
    r"\u0c3e-\u0c56\u0d3e-\u0d44\u0d46-\u0d48\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc"
    r"\u0ec8-\u0ecd\u1885-\u1886"
)
_SYMBOLS = (
    r"\u0022-\u002c\u003a-\u003e\u005b-\u005e\u0060\u007b-\u007e\u0080\u0091-\u0094\u0096-\u0097"
    r"\u00a1-\u00a9\u00ab-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u00d7\u00f7\u037e\u0387\u0589\u05be\u05c0"
    r"\u05c3\u05c6\u05f3-\u05f4\u0600-\u0603\u0606-\u060c\u0614\u061b\u061e-\u061f\u066a\u066d\u06d4"
    r"\u0700-\u070d\u07f6-\u07f8\u0964-\u0965\u0e3f\u0e4f\u1fbd\u2013-\u2023\u2026\u2030-\u203b"
    r"\u203e-\u2042\u2044\u2070\u2074-\u207e\u2080-\u208e\u20a0\u20a4\u20ac\u2100-\u2101\u2103-\u2106"
    r"\u2108-\u2109\u2114\u2116-\u2118\u211e-\u2123\u2125\u2127\u2129\u212e\u213a-\u213b\u2140-\u2144"
    r"\u214a-\u214d\u214f\u2153-\u215e\u2190-\u2bff\u3001-\u3002\u3012\u30fb\uff01-\uff0f\uff1a-\uff20"
    r"\uff3b-\uff40\uff5b-\uff65\uffe0-\uffe1\uffe5-\uffe6"
)
_NEWER = (
    r"\u037f\u0528-\u052f\u0558\u0560\u0588\u058b-\u058c\u05ef\u0860-\u086a\u0870-\u0887\u0889-\u088f"
    r"\u08a1\u08ad-\u08c9\u0978\u0980\u09fc\u0af9\u0c34\u0c5a\u0c5c-\u0c5d\u0c80\u0cdc-\u0cdd\u0d04"
    r"\u0d54-\u0d56\u0d5f\u0de6-\u0def\u0e86\u0e89\u0e8c\u0e8e-\u0e93\u0e98\u0ea0\u0ea8-\u0ea9\u0eac"
    r"\u13f5\u13f8-\u13fd\u16f1-\u16f8\u170d\u171f\u1878\u191d-\u191e\u19b0-\u19c0\u19c8-\u19c9\u1b4c"
    r"\u1c80-\u1c8a\u1c90-\u1cba\u1cbd-\u1cbf\u1cf2-\u1cf3\u1cfa\u208f\u209d-\u209f\u2c2f\u2c5f"
    r"\u312e-\u312f\u31bb-\u31bf\u4db6-\u4dbf\u9fcd-\u9fff\ua698-\ua69d\ua78f\ua794-\ua79f\ua7ab-\ua7dd"
    r"\ua7e2\ua7f1-\ua7f7\ua8fd-\ua8fe\ua9e0-\ua9e4\ua9e6-\ua9fe\uaa7e-\uaa7f\uab30-\uab5a\uab5c-\uab69"
    r"\uab6c-\uab6d\uab70-\uabbf"
    r"\U00010000-\U0010ffff"
)
_LETTER = rf"[\p{{L}}--[{_NEWER}]]"
_DIGIT = rf"[\p{{Nd}}--[{_NEWER}]]"
_ALNUM = rf"[[\p{{L}}\p{{Nd}}]--[{_NEWER}]]"
_ACCENTED = r"&[aeiouAEIOU](?:acute|grave|uml);"  # stays as it is, but is a letter
_WORD_START = rf"(?:[[\p{{L}}{_MARKS}]--[{_NEWER}]]|{_ACCENTED})"
_WORD_CHARACTER = rf"(?:[[\p{{L}}\p{{Nd}}{_MARKS}]--[{_NEWER}]]|{_ACCENTED})"
_BLANK = r"[ \t\n\r\u00a0\u2000-\u200a\u3000]"
_APOSTROPHE = r"(?:['\x92’]|&apos;)"
_ANY_APOSTROPHE = r"(?:['\x92’`\x91‘‛]|&apos;)"

# Words and their parts.
_WORD = rf"{_WORD_START}{_WORD_CHARACTER}*+(?:[.!?]{_WORD_START}{_WORD_CHARACTER}*+)*"
_ELISION = rf"(?:[dDoOlL]{_ANY_APOSTROPHE}{_ALNUM})?"
_COMPOUND = rf"{_ELISION}{_ALNUM}+(?:[-_֊‐‑]{_ELISION}{_ALNUM}+)*"
_INITIALISM = r"[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+"
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])+"
_CLITIC = rf"{_APOSTROPHE}(?i:[msd]|re|ve|ll)"
_NEGATION = rf"(?i:n){_ANY_APOSTROPHE}(?i:t)"
_CONTRACTIONS = "c'mon|cap'n|c'est|e'er|s'mores|ev'ry|li'l|nat'l|nor'easter|dunkin'|somethin'|ol'|'em|'till?|'cause"
_SLASHED = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_NUMBER = rf"(?:{_DIGIT}*(?:[.:,\u00ad\u066b\u066c]{_DIGIT}+)+|{_DIGIT}+)"
_TAG_NAME = r"[A-Za-z][A-Za-z0-9_:.-]*"
_ATTRIBUTE = rf"{_TAG_NAME}(?: *= *(?:'[^']*'|\"[^\"]*\"|{_TAG_NAME}))?"
_TAG = rf"<(?:[!?][A-Za-z-][^>\r\n]*|/?{_TAG_NAME}(?: +{_ATTRIBUTE})* */?) *>"
_URL_END = r"[^ \t\n\f\r\"<>|.!?(){},-]"
_URL_PATH = rf"(?:/[^ \t\n\f\r\"<>|()]+{_URL_END})"
_EXTENSIONS = (
    "bat|bmp|c|cgi|class|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|ppt|ps|py|sql|tar|txt|"
    "wav|x|xml|zip"
)

# Words that keep their full stop: months, states, companies; titles and more; and those before a number.
_SUFFIXES = (
    "ala?|apr|ariz|assn|aug|bancorp|bhd|bldg|blvd|bros|calif|colo|conn|corp|cos?|ct|dak|dec|esq|est|etc|ext|feb|fla|"
    "fri|ga|inc|ind|intl|jan|jr|jul|jun|kans?|ky|ltd|mar|md|mich|minn|mo|mont?|neb|nev|nov|oct|okla|penn|plc|rd|rt|"
    "sept?|seq|sq|sr|sys|tel|tenn|thu|thurs|tues?|univ|va|vt|wed|wisc?|wyo"
)
_CAPITAL_SUFFIXES = "Ark|ARK|Az|AZ|Del|DEL|Ill|ILL|La|LA|Mass|MASS|Miss|MISS|Ore|ORE|Pa|PA|Tex|TEX|Wash|WASH"
_TITLES = (
    "adj|adm|adv|alex|asst|assoc|attys?|ave|brig|capt|cf|cie|cmdr|comdr|col|cpl|dept|det|drs?|elec|ens|ft|gen|govs?|"
    "hon|insp|invt|jos|lieut|lt|maj|messrs|mlle|mme|mrs?|ms|msgr|mt|natl|pfc|ph|pres|profs?|pvt|reps?|rev|sens?|sfc|"
    "sgt|spc|ste?|supts?|treas|vs|wm"
)
_NUMBERED = "art|ca|figs?|nos?|op|pp|prop"
# After "plan B." these begin a sentence: the stop is no part of "B".
_SENTENCE_STARTS = (
    r"A|About|According|Additionally|After|An|As|At|But|Earlier|He|Her|Here|However|If|In|It|Last|Many|More|Mr\.|Ms\.|"
    r"Now|Once|One|Other|Our|She|Since|So|Some|Such|That|The|Their|Then|There|These|They|This|We|What|When|While|Yet|"
    r"You"
)

# fmt: off
_NAMES = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
    '"': "''", "&quot;": "''", "“": "``", "«": "``", "\x93": "``", "”": "''", "»": "''", "\x94": "''",
    "‘": "`", "‛": "`", "‹": "`", "\x91": "`", "’": "'", "›": "'", "\x92": "'", "&apos;": "'",
    "¢": "cents", "£": "#", "¤": "$", "€": "$", "₠": "$", "\x80": "$",
    "¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3",
    "–": "--", "—": "--", "―": "--", "\x96": "--", "\x97": "--", "&MD;": "--", "&mdash;": "--", "&ndash;": "--",
    "…": "...", "\x85": "...", "&amp;": "&", "&lt;": "<", "&gt;": ">",
}
# fmt: on


def _same(text: str) -> str:
    return text


def _word(text: str) -> str:
    """Without soft hyphens."""
    return text.replace("\u00ad", "") or "-"


def _named(text: str) -> str:
    return _NAMES.get(text, text)


def _all_named(text: str) -> str:
    return "".join(map(_named, text.replace("&apos;", "'")))


def _spaced(text: str) -> str:
    """One token with spaces in it: they become no-break spaces."""
    return text.replace(" ", "\u00a0").replace("\t", "\u00a0")


def _bracketed(text: str) -> str:
    return _spaced(text.replace("(", "-lrb-").replace(")", "-rrb-"))


# Words that are two tokens.
_CONTRACTED = [("can", "not"), ("gon|lem|gim|got|wan", "na|me|ta")]
_TWO_WORDS = regex.compile("|".join(rf"(?i:(?:{first})(?:{second}))" for first, second in _CONTRACTED))

# (pattern, what becomes of the text). The token is group 1; what follows it in the pattern is only looked at.
_RULES: list[tuple[str, Callable[[str], str]]] = [
    (rf"({_BLANK}+|&nbsp;)", lambda _: ""),
    *((rf"((?i:{first}))(?i:{second})", _same) for first, second in _CONTRACTED),
    (r"('(?i:t))(?i:is|was)", _same),
    (rf"({_TAG})", _spaced),
    (r"(&(?:HT|TL|UR|LR|QC|QL|QR|odq|cdq|#[0-9]+);)", _same),
    # Words.
    (rf"({_WORD}){_CLITIC}", _word),
    (rf"([A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*){_NEGATION}", _word),
    (rf"({_WORD})", _word),
    (rf"([A-HJ-XZn]{_ANY_APOSTROPHE}{_LETTER}{{2}}{_LETTER}*)", _same),
    (rf"({_CLITIC}|{_NEGATION})[^A-Za-z]", _all_named),
    (rf"({_COMPOUND})", _word),
    (rf"({_INITIALISM})", lambda text: text.replace("&amp;", "&")),
    (rf"((?:{_WORD}|{_COMPOUND}|{_INITIALISM})\.)[,;:、]", _word),
    # Addresses.
    (rf"((?i:https?)://[^ \t\n\f\r\"<>|(){{}}]+{_URL_END})", _same),
    (rf"(www\.(?:[^ \t\n\f\r\"<>|.!?(){{}},]+\.)+[a-zA-Z]{{2,4}}{_URL_PATH}?)", _same),
    (rf"((?:[^ \t\n\f\r\"`'<>|!?(){{}}$,-_]+\.)+(?:com|net|org|edu){_URL_PATH}?)", _same),
    (
        r"((?:<|&lt;)?[a-zA-Z0-9][^ \t\n\f\r\u00a0\"<>|(){}]*@"
        r"(?:[^ \t\n\f\r\u00a0\"<>|(){}.]+\.)*[^ \t\n\f\r\u00a0\"<>|(){}.]+>?)",
        _same,
    ),
    (rf"(@[A-Za-z_][A-Za-z_0-9]*|#{_WORD_START}+)", _same),
    # Full stops that belong to the word, or not.
    (rf"([A-Za-z])\.{_BLANK}+(?:(?=[A-Z])(?i:{_SENTENCE_STARTS})|{_TAG}){_BLANK}", _same),
    (rf"((?:(?i:{_SUFFIXES})|{_CAPITAL_SUFFIXES}|(?i:pp?t)[ey]s?)\.)(?s:..)", _same),
    (rf"((?i:{_ACRONYM}|(?:ph|ed)\.d|[a-z]|{_TITLES}|(?:rev|cont){_APOSTROPHE}d)\.|[mM][ft]g\.)", _same),
    (rf"((?i:{_NUMBERED})\.)[ \t\u00a0]?[0-9]", _same),
    (rf"({_ALNUM}+(?:\.{_ALNUM}+)*\.(?i:{_EXTENSIONS}))(?:{_BLANK}|[.?!,])", _same),
    # Words with a hyphen or slash.
    (rf"({_SLASHED}(?:\\?/{_SLASHED}){{1,2}})", _same),
    (rf"([A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:{_ACRONYM}\.|[A-Za-z0-9\u00ad]+))+)", _word),
    (r"(-(?i:RRB|LRB|RCB|LCB|RSB|LSB)-|(?i:c\.d\.s|pro-|anti-)|S(?:&|&amp;)(?:P-500|Ls)|(?i:c\+\+|[cf]#))", _same),
    # Words with an apostrophe.
    (rf"((?i:{_CONTRACTIONS}))".replace("'", _APOSTROPHE), _same),
    (rf"({_APOSTROPHE}(?i:n){_APOSTROPHE}?)", _same),
    (rf"([lLdDjJ]{_APOSTROPHE})", _same),
    (rf"([yY]{_APOSTROPHE}){_LETTER}", _same),
    (rf"({_LETTER}+[aeiouyAEIOUY]{_ANY_APOSTROPHE}[aeiouA-Z]{_LETTER}*)", _same),
    (rf"({_APOSTROPHE}[2-9]0(?i:s))", _same),
    (rf"({_APOSTROPHE}[0-9][0-9])\s", _same),
    # Numbers.
    (rf"([-+]?{_NUMBER})", _word),
    (r"([⁺⁻₊₋]?(?:[⁰¹²³⁴-⁹]+|[₀-₉]+))", _same),
    (rf"((?:{_DIGIT}{{1,4}}[- \u00a0])?{_DIGIT}{{1,4}}(?:\\?/|⁄){_DIGIT}{{1,4}})", _spaced),
    (rf"({_DIGIT}{{1,2}}[-/]{_DIGIT}{{1,2}}[-/]{_DIGIT}{{2,4}})", _same),
    (
        r"((?:\([0-9]{2,3}\)[ \u00a0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \u00a0])?[0-9]{2,4}[- \u00a0])"
        r"[0-9]{3,4}[- \u00a0]?[0-9]{3,5})",
        _bracketed,
    ),
    (r"((?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5})", _same),
    # What is no word: smileys, dots, dashes, quotes, symbols.
    (r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])[^A-Za-z0-9]", _bracketed),
    (r"([-\^x=~<>']_[-\^x=~<>']|\([-\^x=~<>'][-_.]?[-\^x=~<>']\))", _bracketed),
    (r"(\.{3,5}|\.[ \u00a0](?:\.[ \u00a0])+\.)", lambda _: "..."),
    (r"(-+)", lambda text: "--" if 2 <= len(text) <= 4 else text),
    (r"([?!]+|@+|#+|_+|\*+|(?:\\\*){1,3}|<<|>>|[A-Z]*\$)", _same),
    (r"(')[A-Za-z]\S", _same),
    (rf"({_CLITIC}|{_NEGATION})", _all_named),
    (r"(''|``|'|[`\x91-\x94‘’‛“”‹›«»]{1,2})", _all_named),
    (rf"(&(?:amp|lt|gt|apos|quot|MD|mdash|ndash);|[./?!=_@\x85{_SYMBOLS}])", _named),
]
_COMPILED = [(regex.compile(pattern, regex.V1), rewrite) for pattern, rewrite in _RULES]

# A rule looks beyond a space only where one of these is. The first, quickly searched, is wherever the second is.
_PERHAPS_BEYOND_SPACE = regex.compile(r"[<\p{Nd}]|\. ", regex.V1)
_BEYOND_SPACE = regex.compile(r"<|[\p{Nd})] \p{Nd}|\. [0-9]|\. \.|(?<![A-Za-z])[A-Za-z]\. +[A-Z]", regex.V1)


def tokenize(caption: str) -> list[str]:
    """Tokens of `caption`, in order; [] where there is nothing but punctuation.

    `" ".join(tokenize(caption))` is what PTBTokenizer gives for the caption alone. As there, a token may hold a
    no-break space (`1 1/2` is one token). A line break is a space.
    """
    return [token for piece in split_pieces(caption) for token in tokenize_piece(piece)]


def split_pieces(caption: str) -> list[str]:
    """Parts of the caption that are tokenised each by itself: what is between spaces, or all of it."""
    return [caption] if is_one_piece(caption) else caption.split(" ")


def is_one_piece(caption: str) -> bool:
    """Whether a rule may look beyond a space of the caption."""
    return bool(_PERHAPS_BEYOND_SPACE.search(caption) and _BEYOND_SPACE.search(caption))


@lru_cache(maxsize=1 << 16)
def tokenize_piece(piece: str) -> tuple[str, ...]:
    """Tokens of one of `split_pieces`. Captions repeat their words: most pieces have been seen."""
    if piece.isascii() and piece.isalpha() and not _TWO_WORDS.fullmatch(piece):
        return (piece.lower(),)  # of letters alone the rules make one word
    return tuple(_lex(piece))


def _lex(text: str) -> list[str]:
    tokens = []
    position, stop = 0, len(text)
    text += "\n\n"  # rules look up to two characters beyond the end
    while position < stop:
        longest, end, token = 0, position + 1, ""
        for pattern, rewrite in _COMPILED:
            match = pattern.match(text, position)
            if match and match.end() > longest:
                longest, end, token = match.end(), match.end(1), rewrite(match[1])
        position = end
        token = token.lower()
        if token and token not in PUNCTUATION:
            tokens.append(token)
    return tokens
