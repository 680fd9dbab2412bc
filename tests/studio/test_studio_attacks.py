"""What texts hold never becomes a part of the page, and what gets into the page all the same does not run."""

import pytest
from studio.browser import Open
from support.server import RunningServer

ATTACKS = [
    "<script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 1'>",
    '"><svg onload=window.hit=1>',
    "'><body onload=window.hit=1>",
    "javascript:window.hit=1",
    '<a href="javascript:window.hit=1">x</a>',
    "<iframe srcdoc='<script>parent.hit = 1</script>'></iframe>",
    "<style>*{background:url(//example.org/x)}</style>",
    "</textarea><script>window.hit = 1</script>",
    "${window.hit = 1} {{constructor.constructor('window.hit = 1')()}}",
    "<math><mtext><table><mglyph><style><img src=x onerror=window.hit=1>",
    "&lt;script&gt;window.hit = 1&lt;/script&gt; &#60;script&#62;",
    "\u202eevil\u202c \u2066x\u2069 \u200f",
    "\u0000\u0001\ufeff\ufffe a",
    "__proto__ constructor toString",
]


def test_no_text_runs_or_becomes_an_element(studio: RunningServer, opened: Open) -> None:
    one = opened(studio)
    one.page.on("dialog", lambda dialog: one.wrong.append(f"dialog {dialog.message}"))
    one.done("#texts-said")
    kinds = "[...new Set([...document.querySelectorAll('*')].map(one => one.localName))].sort().join()"
    before = set(one.page.evaluate(kinds).split(","))
    one.compare(*ATTACKS)
    assert one.text("#texts-said").startswith(f"{len(ATTACKS)} texts, ")
    for chosen in range(len(ATTACKS)):
        one.page.locator("#matrix tbody button").nth(chosen).click()
        assert one.page.locator("#tokens li").count() > 2
    one.page.locator("#matrix td[data-at='0,1']").hover()
    assert "<script>window.hit = 1</script>" in one.text("#matrix-point")
    assert "<img src=x onerror=" in " ".join(one.page.locator("#matrix tbody button").all_inner_texts())
    assert set(one.page.evaluate(kinds).split(",")) == before
    assert one.page.evaluate("window.hit") is None
    names = "[...document.querySelectorAll('*')].flatMap(one => one.getAttributeNames())"
    assert one.page.evaluate(f"{names}.filter(name => name.startsWith('on'))") == []
    # Marks that turn the direction of writing do not reach what stands beside them.
    assert "\u202e" not in one.text("#matrix")


def test_a_text_of_a_hundred_kilobytes_is_cut_and_shown(studio: RunningServer, opened: Open) -> None:
    one = opened(studio)
    one.done("#texts-said")
    one.compare("<b>" * 33_000, "x" * 100_000, "a")
    assert one.text("#texts-said").startswith("3 texts, ")
    assert one.overflow() <= 0
    # As much of it as anybody reads.
    assert one.page.evaluate("document.body.innerText.length") < 30_000


ADD = """const add = (name, {attributes = {}, ...properties}, place = document.body) => {
  const element = Object.assign(document.createElement(name), properties);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  place.append(element);
  return element;
};"""
INTRUDERS = {
    "an inline script": "add('script', {text: 'window.hit = 1'})",
    "an attribute that is code": "add('button', {attributes: {onclick: 'window.hit = 1'}}).click()",
    "markup from a string": "document.body.innerHTML = '<img src=x onerror=window.hit=1>'",
    "code from a string": "setTimeout('window.hit = 1', 0)",
    "a script from elsewhere": "add('script', {src: 'https://example.org/x.js'})",
    "a call to elsewhere": "fetch('https://example.org/').then(() => { window.hit = 1 }, () => {})",
    "a picture from elsewhere": "add('img', {onload: () => { window.hit = 1 }, src: 'https://example.org/x.png'})",
    "a frame": "add('iframe', {src: '/'})",
    "a form": "add('form', {action: 'https://example.org/'}).submit()",
    "a base": "add('base', {href: 'https://example.org/'}, document.head)",
    "an inline style": "add('p', {attributes: {style: 'color: rgb(1, 2, 3)'}})",
}


@pytest.mark.parametrize("what", INTRUDERS)
def test_what_gets_into_the_page_all_the_same_is_stopped(studio: RunningServer, opened: Open, what: str) -> None:
    one = opened(studio, forgiven="Policy|requires 'Trusted")
    one.done("#texts-said")
    one.page.evaluate(
        "window.stopped = []; document.addEventListener('securitypolicyviolation', "
        "event => window.stopped.push(event.effectiveDirective))"
    )
    one.page.evaluate(f"() => {{ {ADD} try {{ {INTRUDERS[what]} }} catch {{ }} }}")
    one.until("window.stopped.length > 0")
    assert one.page.evaluate("window.hit") is None
    coloured = "[...document.querySelectorAll('p')].some(one => getComputedStyle(one).color === 'rgb(1, 2, 3)')"
    assert not one.page.evaluate(coloured)
    assert one.page.url == f"http://127.0.0.1:{studio.http_port}/#texts"
