"""The tokeniser gives what COCO's gives: the real one, in Java, is run over everything tested here."""

import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from nic_model.metrics.tokenizer import _lex, split_pieces, tokenize, tokenize_piece

HARD_STRINGS = Path(__file__).with_name("hard_strings.txt")
FLICKR8K = Path(__file__).parents[3] / "shared" / "flickr8k"

# Caption, and its tokens with spaces between. `test_oracle` holds the right side against the real tokeniser too.
# fmt: off
CASES = [
    ("A dog doesn't bark .", "a dog does n't bark"),
    ("They're happy, we've won, he'd go, I'm here, she'll stay", "they 're happy we 've won he 'd go i 'm here she 'll stay"),  # noqa: E501
    ("WE CAN'T STOP; it's JOHN'S", "we ca n't stop it 's john 's"),
    ('don’t can`t won‘t couldn’t', "do n't ca n`t wo n`t could n't"),
    ("You cannot go, I'm gonna try, wanna play? gimme that, lemme see, gotta run", "you can not go i 'm gon na try wan na play gim me that lem me see got ta run"),  # noqa: E501
    ("'tis the season, 'twas fun", "'t is the season 't was fun"),
    ("the dogs' toys and James' hat", 'the dogs toys and james hat'),
    ("rock 'n' roll, rock'n'roll, rock-n-roll", "rock 'n' roll rock 'n' roll rock-n-roll"),
    ("five o'clock, O'Brien, D'Angelo, l'eau, d'or, jack-o'-lantern", "five o'clock o'brien d'angelo l'eau d'or jack-o lantern"),  # noqa: E501
    ("'em 'til 'cause 'bout 'round ol' man", "'em 'til 'cause bout round ol' man"),
    ("y'all ma'am c'mon cap'n li'l ne'er o'er", "y' all ma'am c'mon cap'n li'l ne'er o'er"),
    ("Hawai'i Shi'ite Qur'an ta'ziya", "hawai'i shi'ite qur an ta ziya"),
    ("'90s '05 '5 90's 1980's 1980s", "'90s '05 5 90 's 1980 's 1980s"),
    ('well-lit, merry-go-round, T-shirt, X-ray, 3-D, tri-colored', 'well-lit merry-go-round t-shirt x-ray 3-d tri-colored'),  # noqa: E501
    ("mother-in-law's semi-'tis rock-'n'-roll", "mother-in-law 's semi 't is rock 'n' roll"),
    ('anti-war pro-life anti- pre-', 'anti-war pro-life anti- pre'),
    ('A-B.C. non-U.S. U.S.-based Anglo-U.S.', 'a-b.c. non-u.s. u.s.-based anglo-u.s.'),
    ('a -- b, a - b, a--b, a---b, ------', 'a b a b a b a b ------'),
    ('en–dash em—dash 2010–2012 non‑breaking', 'en dash em dash 2010 2012 non‑breaking'),
    ('snake_case a_b __init__ _x_', 'snake_case a_b __ init __ _ x _'),
    ('$5, $5.50, $1,000.50, US$50, A$ 3', '$ 5 $ 5.50 $ 1,000.50 us$ 50 a$ 3'),
    ('£3 €20 5€ ¥100 ¢25 5¢', '# 3 $ 20 5 $ ¥ 100 cents 25 5 cents'),
    ('50% off, 5 % , #5 # 5 #33', '50 % off 5 % # 5 # 5 # 33'),
    ('1,000 1,000,000.55 3.14 .5 -5 +3 10.', '1,000 1,000,000.55 3.14 .5 -5 +3 10'),
    ('1/2 1 1/2 3/4-inch 2-1/2 24/7', '1/2 1\xa01/2 3/4-inch 2-1/2 24/7'),
    ('½ cup, 1½ cups, ¾ ⅓', '1/2 cup 1 1/2 cups 3/4 1/3'),
    ('10:30 10:30pm 5 p.m. 5p.m. 12:30:15', '10:30 10:30 pm 5 p.m. 5p m. 12:30:15'),
    ('12/25/2010 2010-12-25 25-12-2010', '12/25/2010 2010-12-25 25-12-2010'),
    ('555-1234 (555) 123-4567 1-800-555-1234 +1 555 123 4567', '555-1234 -lrb-555-rrb-\xa0123-4567 1-800-555-1234 +1 555\xa0123\xa04567'),  # noqa: E501
    ("1st 2nd 3rd 22nd 4x4 MP3 10km 5'10\" 6'2\"", '1st 2nd 3rd 22nd 4x4 mp3 10km 5 10 6 2'),
    ('x² m³ 20° 20°C H₂O', 'x ² m ³ 20 ° 20 ° c h ₂ o'),
    ('wait... what.... no . . . yes …', 'wait what no yes'),
    ('.. ... .... ..... ......', ''),
    ('What?! No!! Hey!!! Really??? ?', 'what ?! no !! hey !!! really ???'),
    ('hello,world hello.world end.Start yes!no', 'hello world hello.world end.start yes!no'),
    ('Mr. Smith and Mrs. Jones vs. Dr. Who Jr.', 'mr. smith and mrs. jones vs. dr. who jr.'),
    ("St. John's St., Main St. and 5th Ave.", "st. john 's st. main st. and 5th ave."),
    ('etc. Inc. Ltd. Co. Corp. Bros.', 'etc. inc. ltd. co. corp. bros.'),
    ('Jan. 5, Sept. 3, Mon. to Fri.', 'jan. 5 sept. 3 mon. to fri.'),
    ('U.S. U.S.A. a.m. P.M. e.g. i.e. Ph.D. D.C.', 'u.s. u.s.a. a.m. p.m. e.g. i.e. ph.d. d.c.'),
    ('No. 5 and no. 7, but no. Fig. 3, pp. 12, Prop. 8', 'no. 5 and no. 7 but no fig. 3 pp. 12 prop. 8'),
    ('plan B. The dog, plan B. then, J. K. Rowling', 'plan b the dog plan b. then j. k. rowling'),
    ('Yahoo! OK! E!', 'yahoo ok e'),
    ('http://www.example.com/a?b=c, (https://x.org/a-b).', 'http://www.example.com/a?b=c -lrb- https://x.org/a-b -rrb-'),  # noqa: E501
    ('www.foo.org, foo.com and foo.co.uk. x.com/a/b?c=d', 'www.foo.org foo.com and foo.co.uk x.com/a/b?c=d'),
    ('me@example.com, <me@example.com> a@b.', 'me@example.com, <me@example.com> a@b'),
    ('@user #hashtag #5 @ # @@ ##', '@user #hashtag # 5 @ # @@ ##'),
    ('photo.jpg 1.jpg file.txt 2.x', 'photo.jpg 1.jpg file.txt 2.x'),
    (":) :-) ;D :P =) :'( >:( :/ 8)", ":-rrb- :--rrb- ;d :p =-rrb- :'-lrb- >:-lrb- / 8 -rrb-"),
    ('^_^ -_- (^_^) o_o <3 x_x', '^_^ -_- -lrb-^_^-rrb- o_o < 3 x_x'),
    ('a 😀 dog 👍🏽 runs ❤️ ♥ ★ 🐶🐱', 'a dog runs ❤ ♥ ★'),
    ('café naïve résumé São Paulo Müller’s jalapeño', "café naïve résumé são paulo müller 's jalapeño"),
    ("un été à l'école, où ça ? ¿Qué? ¡Olé!", "un été à l'école où ça ¿ qué ¡ olé"),
    ('中文字符 日本語 한국어', '中文字符 日本語 한국어'),
    ('русский текст, Ελληνικά, עברית, العربية', 'русский текст ελληνικά עברית العربية'),
    ('हिन्दी ไทย', 'हिन्दी ไทย'),
    ("“quoted” ‘single’ «guillemets» „low“ ''two'' ``back'' \"plain\"", 'quoted single guillemets „ low two back plain'),  # noqa: E501
    ("a \"big\" dog; 'small' one: (maybe) [sic] {set}", 'a big dog small one -lrb- maybe -rrb- -lsb- sic -rsb- -lcb- set -rcb-'),  # noqa: E501
    ('-LRB- -RRB- -LSB- ( ) [ ] { }', '-lrb- -rrb- -lsb- -lrb- -rrb- -lsb- -rsb- -lcb- -rcb-'),
    ('<b>bold</b> <br/> a < b, a > b, a<b, x<y>z', '<b> bold </b> <br/> a < b a > b a < b x <y> z'),
    ('AT&T R&B Q&A M&Ms A+ C++ rock&roll & S&P-500', 'at&t r&b q&a m&m s a + c++ rock & roll & s&p-500'),
    ('&amp; &lt; &gt; &quot;hi&quot; it&apos;s &mdash; &nbsp;', "& < > hi it 's"),
    ('and/or he/she w/ w/o c/o a/b/c a/b/c/d km/h', 'and/or he/she w / w/o c/o a/b/c a/b/c / d km/h'),
    ('* ** *a* ~ ^ | \\ / = == + ++ %', '* ** * a * ~ ^ | \\ / = = = + + + %'),
    ('© ® ™ § ¶ • · † ♪ → ∞ ≠', '© ® ™ § ¶ • · † ♪ → ∞ ≠'),
    ("1's 5's B's ABC's x's1 it'sa", "1 's 5 's b 's abc 's x 's 1 it sa"),
    ('a, b. c; d: e! f? g', 'a b. c d e f g'),
    ('"', ''),
    ('...', ''),
    ("the man 's hat is n't red", "the man 's hat is n't red"),
    ('tab\there', 'tab here'),
    ('\xa0nbsp\xa0here\u3000wide', 'nbsp here wide'),
    ('soft\xadhyphen zero\u200bwidth', 'softhyphen zero width'),
    ('decomposed café naïve-like', 'decomposed café naïve-like'),
]
# fmt: on

# fmt: off
PIECES = [
    "a", "the", "dog", "dogs'", "dog's", "isn't", "don’t", "can't", "cannot", "gonna", "he'd", "they've", "y'all",
    "'em", "'n'", "'90s", "o'clock", "O'Brien", "T-shirt", "3-D", "well-lit", "mid-air", "half-", "-", "--", "—",
    "–", ",", ".", ";", ":", "!", "?", "...", "…", ".", ".", "Mr.", "St.", "Jr.", "vs.", "No.", "no.", "5", "U.S.",
    "a.m.", "etc.", "Inc.", "J.", "B.", "The", "A", "He", "3", "12", "1990s", "1/2", "3.5", "1,000", "10:30", "5th",
    "$5", "$", "£3", "50%", "#5", "#fun", "@me", "#", "&", "AT&T", "and/or", "w/", '"nike"', '"so', "“so”", "‘so’",
    "'so'", "(so", "so)", "[so]", "café", "Über", "😀", "❤", "½", "²", "°", "www.a.com", "a.com", "x.jpg", ":)",
    "<b>", "<", ">", "*", "+", "=", "/", "_", "~",
]
# fmt: on


def oracle(captions: list[str]) -> list[list[str]]:
    """Tokens by the real tokeniser. A line between keeps it from taking the next caption's first word into account."""
    given = {2 * i: [{"caption": caption}] for i, caption in enumerate(captions)}
    between = {2 * i + 1: [{"caption": "zz"}] for i in range(len(captions))}
    lines = PTBTokenizer().tokenize(dict(sorted((given | between).items())))
    assert all(lines[i] == ["zz"] for i in between), "the oracle has lost count of its lines"
    return [lines[i][0].split(" ") if lines[i][0] else [] for i in given]


@pytest.fixture(scope="module")
def captions() -> list[str]:
    """All captions of Flickr8k: 7,000 images, five each."""
    tables = [pq.read_table(file, columns=["captions"]) for file in sorted(FLICKR8K.glob("*.parquet"))]
    return [text for table in tables for texts in table["captions"].to_pylist() for text in texts]


@pytest.mark.parametrize(("caption", "expected"), CASES)
def test_hard_strings(caption: str, expected: str) -> None:
    assert " ".join(tokenize(caption)) == expected


def test_oracle() -> None:
    assert [" ".join(tokens) for tokens in oracle([caption for caption, _ in CASES])] == [e for _, e in CASES]


def test_file_of_hard_strings() -> None:
    strings = HARD_STRINGS.read_text("utf-8").split("\n")[:-1]
    assert len(set(strings)) >= 300
    for string, expected in zip(strings, oracle(strings), strict=True):
        assert tokenize(string) == expected, string


def test_all_captions_of_flickr8k(captions: list[str]) -> None:
    assert len(captions) == 35_000
    for caption, expected in zip(captions, oracle(captions), strict=True):
        assert tokenize(caption) == expected, caption


def test_random_mixtures() -> None:
    """Tokens side by side that the table above has not thought of, glued together now and then."""
    rng = random.Random(0)
    mixtures = [
        "".join(rng.choice(PIECES) + rng.choice(["", " ", " ", " "]) for _ in range(rng.randint(2, 8))).strip()
        for _ in range(5_000)
    ]
    for mixture, expected in zip(mixtures, oracle(mixtures), strict=True):
        assert tokenize(mixture) == expected, mixture


@pytest.mark.parametrize("caption", ["", " ", ".", " . \t", "\n", "😀"])
def test_nothing_to_say(caption: str) -> None:
    assert tokenize(caption) == []


@pytest.mark.parametrize("end", ["\n", "\r\n", "\t", " \n "])
def test_line_break_is_a_space(end: str) -> None:
    assert tokenize(f"A dog{end}runs{end}") == ["a", "dog", "runs"]


def test_words_do_not_depend_on_what_came_before() -> None:
    """Chunks are remembered between captions: the first and the second time are the same."""
    for _ in range(2):
        assert tokenize("no. 5") == ["no.", "5"]
        assert tokenize("no. dogs") == ["no", "dogs"]


def test_plain_words_are_as_the_rules_make_them() -> None:
    """They are told by their letters; the rules are run over them too."""
    files = sorted(FLICKR8K.glob("*.parquet"))
    lists = [texts for file in files for texts in pq.read_table(file, columns=["captions"])["captions"].to_pylist()]
    hard = HARD_STRINGS.read_text(encoding="utf-8").splitlines()
    pieces = {piece for texts in [*lists, hard] for text in texts for piece in split_pieces(text)}
    joined = [a + b for a in ("can", "gon", "lem", "gim", "Got", "WAN", "x") for b in ("not", "na", "me", "TA", "nots")]
    for piece in (*pieces, *joined):
        assert tokenize_piece(piece) == tuple(_lex(piece)), piece
