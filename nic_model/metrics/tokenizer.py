"""COCO's tokeniser in Python: what Stanford's PTBTokenizer makes of a caption, lower-cased, punctuation dropped.

Same tokens as `pycocoevalcap` 1.2, which runs CoreNLP 3.4.1 in Java (`-preserveLines -lowerCase`). The grammar was
found by comparing with it. It works as lexers do: at each position the rule that matches most text wins, the text it
only looks at included, and the earlier rule among equals.
"""

from collections.abc import Callable
from functools import lru_cache

import regex

# What COCO drops. Brackets stay, as -lrb- and the like, for COCO looks for "-LRB-" after lower-casing.
PUNCTUATION = frozenset("'' ' `` ` . ? ! , : - -- ... ;".split())

# Characters by what they do, as the Unicode of 2010 has them. Marks make words with letters, but no compounds;
# a symbol is a token; anything else outside of words, numbers and these, such as an emoji, ends a token and is dropped.
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
_NEWER_LETTERS = (
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
_LETTER = rf"[\p{{L}}--[{_NEWER_LETTERS}]]"
_DIGIT = rf"[\p{{Nd}}--[{_NEWER_LETTERS}]]"
_ALNUM = rf"[[\p{{L}}\p{{Nd}}]--[{_NEWER_LETTERS}]]"
_WORD_START = rf"[[\p{{L}}{_MARKS}]--[{_NEWER_LETTERS}]]"
_WORD_CHARACTER = rf"[[\p{{L}}\p{{Nd}}{_MARKS}]--[{_NEWER_LETTERS}]]"

_APOSTROPHE = r"(?:['\x92’]|&apos;)"
_ANY_APOSTROPHE = r"(?:['\x92’`\x91‘‛]|&apos;)"
_NOT_LATIN = r"[^A-Za-z]"

_WORD = rf"{_WORD_START}{_WORD_CHARACTER}*(?:[.!?]{_WORD_START}{_WORD_CHARACTER}*)*"
_ELISION = rf"(?:[dDoOlL]{_ANY_APOSTROPHE}{_ALNUM})?"
_COMPOUND = rf"{_ELISION}{_ALNUM}+(?:[-_֊‐‑]{_ELISION}{_ALNUM}+)*"
_INITIALISM = r"[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+"
_CLITIC = rf"{_APOSTROPHE}(?i:[msd]|re|ve|ll)"
_CAPITAL_APOSTROPHE = rf"[A-HJ-XZn]{_ANY_APOSTROPHE}{_LETTER}{{2}}{_LETTER}*"
_NEGATION = rf"(?i:n){_ANY_APOSTROPHE}(?i:t)"
_NUMBER = rf"(?:{_DIGIT}*(?:[.:,\u00ad\u066b\u066c]{_DIGIT}+)+|{_DIGIT}+)"
_SLASHED = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])+"
_TAG_NAME = r"[A-Za-z][A-Za-z0-9_:.-]*"
_TAG = (
    rf"<(?:[!?][A-Za-z-][^>\r\n]*"
    rf"|/?{_TAG_NAME}(?: +{_TAG_NAME}(?: *= *(?:'[^']*'|\"[^\"]*\"|{_TAG_NAME}))?)* */?) *>"
)
_BLANK = r"[ \t\n\r\u00a0\u2000-\u200a\u3000]"
_URL_END = r"[^ \t\n\f\r\"<>|.!?(){},-]"
_URL_PATH = rf"(?:/[^ \t\n\f\r\"<>|()]+{_URL_END})"

# Words that keep their full stop: months, states, companies; titles and others; those before a number.
_SUFFIXES = (
    "al|ala|apr|ariz|assn|aug|bancorp|bhd|bldg|blvd|bros|calif|co|colo|conn|corp|cos|ct|dak|dec|esq|est|etc|ext|feb|"
    "fla|fri|ga|inc|ind|intl|jan|jr|jul|jun|kans?|ky|ltd|mar|md|mich|minn|mo|mon|mont|neb|nev|nov|oct|okla|penn|plc|"
    "rd|rt|sep|sept|seq|sq|sr|sys|tel|tenn|thu|thurs|tues?|univ|va|vt|wed|wisc?|wyo"
)
_CAPITAL_SUFFIXES = "Ark|ARK|Az|AZ|Del|DEL|Ill|ILL|La|LA|Mass|MASS|Miss|MISS|Ore|ORE|Pa|PA|Tex|TEX|Wash|WASH"
_TITLES = (
    "adj|adm|adv|alex|asst|assoc|attys?|ave|brig|capt|cf|cie|cmdr|comdr|col|cpl|dept|det|drs?|elec|ens|ft|gen|govs?|"
    "hon|insp|invt|jos|lieut|lt|maj|messrs|mlle|mme|mrs?|ms|msgr|mt|natl|pfc|ph|pres|profs?|pvt|reps?|rev|sens?|sfc|"
    "sgt|spc|ste?|supts?|treas|vs|wm"
)
_SENTENCE_STARTS = (
    "A|About|According|Additionally|After|An|As|At|But|Earlier|He|Her|Here|However|If|In|It|Last|Many|More|Mr\.|Ms\.|"
    "Now|Once|One|Other|Our|She|Since|So|Some|Such|That|The|Their|Then|There|These|They|This|We|What|When|While|Yet|You"
)
_CONTRACTIONS = rf"c'mon|cap'n|c'est|e'er|s'mores|ev'ry|li'l|nat'l|nor'easter|dunkin'|somethin'|ol'|'em|'till?|'cause"

_EXTENSIONS = (
    "bat|bmp|c|class|cgi|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|ppt|ps|py|sql|tar|txt|"
    "wav|x|xml|zip"
)

_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_QUOTES = {'"': "''", "&quot;": "''"} | dict(zip("‘‛‹\x91’›\x92“«\x93”»\x94", "```` ' ' ' `` `` `` '' '' ''".replace("````", "` ` ` `").split(), strict=True))
_SYMBOL_NAMES = (
    _BRACKETS | _QUOTES | dict(zip("¢£¤€₠\x80¼½¾⅓⅔", "cents # $ $ $ $ 1/4 1/2 3/4 1/3 2/3".split(), strict=True))
    | {"–": "--", "—": "--", "―": "--", "\x96": "--", "\x97": "--", "…": "...", "\u0085": "..."}
    | {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&apos;": "'"}
)


def _same(token: str) -> str:
    return token


def _word(token: str) -> str:
    """Without soft hyphens."""
    return token.replace("\u00ad", "") or "-"


def _named(token: str) -> str:
    return _SYMBOL_NAMES.get(token, token)


def _each_named(token: str) -> str:
    return "".join(map(_named, token))


def _spaced(token: str) -> str:
    """A token with spaces in it keeps them, as no-break spaces."""
    return token.replace(" ", "\u00a0").replace("\t", "\u00a0")


def _parted(token: str) -> str:
    """A word's other half: a plain apostrophe."""
    return _each_named(token.replace("&apos;", "'"))


def _bracketed(token: str) -> str:
    return _spaced(token.replace("(", "-lrb-").replace(")", "-rrb-"))


def _dashes(token: str) -> str:
    return "--" if 2 <= len(token) <= 4 else token


def _nothing(_: str) -> str:
    return ""


def _ellipsis(_: str) -> str:
    return "..."


# (pattern, what becomes of the text). The token is group 1; what follows it in the pattern is only looked at.
_RULES: list[tuple[str, Callable[[str], str]]] = [
    (rf"({_BLANK}+)", _nothing),
    (r"((?i:can))(?i:not)", _same),
    (r"((?i:gon|lem|gim|got|wan))(?i:na|me|ta)", _same),
    (r"('(?i:t))(?i:is|was)", _same),
    (rf"({_TAG})", _spaced),
    (r"(&(?:MD|mdash|ndash);)", _dashes),
    (r"(&(?:HT|TL|UR|LR|QC|QL|QR|odq|cdq|#[0-9]+);)", _same),
    # Words.
    (rf"({_WORD}){_CLITIC}", _word),
    (rf"([A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*){_NEGATION}", _word),
    (rf"({_WORD})", _word),
    (rf"({_CAPITAL_APOSTROPHE})", _same),
    (rf"({_CLITIC}|{_NEGATION}){_NOT_LATIN}", _parted),
    (rf"({_COMPOUND})", _word),
    (rf"({_INITIALISM})", _same),
    (rf"((?:{_WORD}|{_COMPOUND}|{_INITIALISM})\.)[,;:、]", _word),
    # Addresses.
    (rf"(https?://[^ \t\n\f\r\"<>|(){{}}]+{_URL_END})", _same),
    (rf"(www\.(?:[^ \t\n\f\r\"<>|.!?(){{}},]+\.)+[a-zA-Z]{{2,4}}{_URL_PATH}?)", _same),
    (rf"((?:[^ \t\n\f\r\"`'<>|!?(){{}}$,-_]+\.)+(?:com|net|org|edu){_URL_PATH}?)", _same),
    (rf"({_ALNUM}+(?:\.{_ALNUM}+)*\.(?i:{_EXTENSIONS}))(?:{_BLANK}|[.?!,])", _same),
    (
        r"((?:<|&lt;)?[a-zA-Z0-9][^ \t\n\f\r\u00a0\"<>|(){}]*@"
        r"(?:[^ \t\n\f\r\u00a0\"<>|(){}.]+\.)*[^ \t\n\f\r\u00a0\"<>|(){}.]+>?)",
        _same,
    ),
    (rf"(@[A-Za-z_][A-Za-z_0-9]*|#{_WORD_START}+)", _same),
    # Full stops that belong to the word.
    (rf"([A-Za-z])\.{_BLANK}+(?:(?=[A-Z])(?i:{_SENTENCE_STARTS}){_BLANK}|{_TAG})", _same),
    (rf"((?:(?i:{_SUFFIXES})|{_CAPITAL_SUFFIXES}|(?i:pp?t)[ey]s?)\.)(?s:..)", _same),
    (rf"((?i:{_TITLES}|(?:rev|cont){_APOSTROPHE}d|ph\.?d|ed\.?d|{_ACRONYM}|[a-z])\.|[mM][ft]g\.)", _same),
    (r"((?i:art|ca|figs?|nos?|op|pp|prop)\.)[ \t\u00a0]?[0-9]", _same),
    # Words with a hyphen or slash.
    (rf"({_SLASHED}(?:\\?/{_SLASHED}){{1,2}})", _same),
    (rf"([A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:{_ACRONYM}\.|[A-Za-z0-9\u00ad]+))+)", _word),
    (r"(-(?:RRB|LRB|RCB|LCB|RSB|LSB)-|(?i:c\.d\.s|pro-|anti-)|S(?:&|&amp;)(?:P-500|Ls))", _same),
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
    # What is no word.
    (rf"([<>]?[:;=][-o*']?[()DPdpO\\{{@|\[\]])[^A-Za-z0-9]", _bracketed),
    (r"([-\^x=~<>']_[-\^x=~<>']|\([-\^x=~<>'][-_.]?[-\^x=~<>']\))", _bracketed),
    (r"(\.{3,}|\.[ \u00a0](?:\.[ \u00a0])+\.)", _ellipsis),
    (r"(-+)", _dashes),
    (r"([?!]+|@+|#+|_+|\*+|(?:\\\*){1,3}|<<|>>|[A-Z]*\$)", _same),
    (r"(')[A-Za-z]\S", _same),
    (rf"({_CLITIC}|{_NEGATION})", _parted),
    (r"(''|``|'|[`\x91-\x94‘’‛“”‹›«»]{1,2})", _each_named),
    (rf"(&(?:amp|lt|gt|apos|quot);|[./?!=_@\x85{_SYMBOLS}])", _named),
]
_COMPILED = [(regex.compile(pattern, regex.V1), rewrite) for pattern, rewrite in _RULES]

# A token may reach over a space only where there is one of these.
_REACHING = regex.compile(r"[\p{Nd}<]|\. \.|(?<![A-Za-z])[A-Za-z]\. +[A-Z]", regex.V1)


def tokenize(caption: str) -> list[str]:
    """Tokens of `caption`, in order; [] where there is nothing but punctuation.

    `" ".join(tokenize(caption))` is what COCO's PTBTokenizer gives. As there, a token may hold a no-break space
    (`1 1/2`) and a line break in a caption is a space.
    """
    if _REACHING.search(caption):
        return _lex(caption)
    return [token for chunk in caption.split(" ") for token in _lex_chunk(chunk)]


@lru_cache(maxsize=1 << 16)
def _lex_chunk(chunk: str) -> tuple[str, ...]:
    return tuple(_lex(chunk))


def _lex(text: str) -> list[str]:
    tokens = []
    position, stop = 0, len(text)
    text += "\n\n"  # some rules look beyond the end
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
