"""A page as a browser would read it: what is in it, and what keeps it from being safe and readable."""

from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img", "input", "line", "circle", "polyline"}
ALLOWED = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "link",
        "body",
        "main",
        "header",
        "footer",
        "nav",
        "section",
        "h1",
        "h2",
        "p",
        "b",
    ),
    *("a", "dl", "dt", "dd", "div", "span", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "code", "abbr"),
    *("figure", "figcaption", "details", "summary", "svg", "g", "line", "circle", "polyline", "text"),
}


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.problems: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.tags.append((tag, dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        """Everything that is shown, with single spaces."""
        return " ".join(" ".join(self.words).split())

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        """Of every element of that kind."""
        return [attributes for name, attributes in self.tags if name == tag]


def complaints(html: str) -> list[str]:
    """What is wrong with a page: elements that we do not write, handlers, foreign addresses, tables without headers."""
    page = Page(html)
    found = [*page.problems, *(f"<{tag}> is never closed" for tag in page.open)]
    for tag, attributes in page.tags:
        if tag not in ALLOWED:
            found.append(f"<{tag}> has no place here")
        for name, value in attributes.items():
            if name.startswith("on") or name == "style":
                found.append(f"<{tag}> carries {name}")
            if name in ("href", "src", "action") and not str(value).startswith(("/", "?")):
                found.append(f"<{tag}> leads to {value}")
            if name in ("href", "src") and str(value).startswith("//"):
                found.append(f"<{tag}> leads to {value}")
    found += [f"a header cell says not of what: {cell}" for cell in page.attributes("th") if "scope" not in cell]
    found += [
        "a chart says nothing" for svg in page.attributes("svg") if not (svg.get("aria-label") or "aria-hidden" in svg)
    ]
    if [attributes for attributes in page.attributes("html") if attributes.get("lang") != "en"]:
        found.append("the language is not said")
    if len(page.attributes("h1")) != 1 or len(page.attributes("title")) != 1:
        found.append("there must be one title and one heading")
    return found
