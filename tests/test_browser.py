"""Solved notebooks in a real JupyterLab, the benches by keyboard alone; pictures in data/runs/screenshots.

One notebook runs whole and stands for all. Of those with a bench the exercises run, and the cells that the bench
needs: strict comparison runs the rest.
"""

import re

import browser
import nbformat
import pytest
from test_exercises import assert_all_pass, read, solved
from test_notebooks import FOLDER, PAIR

from kvlib.recipe import runs_folder

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
if browser.CHROMIUM is None:
    pytest.skip("there is no Chromium: on Debian, apt-get install chromium", allow_module_level=True)

SCREENSHOTS = runs_folder() / "screenshots"
KEYS, LOSS, SIZES = "03_bottleneck", "04_loss", "05_training"
EVALUATION, SUPPRESSOR = "06_evaluation", "08_continual_learning"
# of each notebook the cells that show a bench, or all
SHOWN = {
    "01_data": [cell.id for cell in read(FOLDER / "01_data.ipynb").cells],
    KEYS: ["bench-cell", "explorer-cell"],
    LOSS: ["bench-cell"],
    SIZES: ["sizes-bench"],
    EVALUATION: ["token-strip", "error-browser"],
    SUPPRESSOR: ["c08-46"],
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab over copies of notebooks with their exercises solved, beside the course's data."""
    folder = tmp_path_factory.mktemp("lab")
    notebooks = folder / "course" / "notebooks"
    notebooks.mkdir(parents=True)
    (folder / "course" / "data").symlink_to(FOLDER.parent / "data")
    for name, shown in SHOWN.items():
        nbformat.write(solved(FOLDER / f"{name}.ipynb", shown), notebooks / f"{name}.ipynb")
    with browser.jupyter_lab(folder / "server", notebooks) as found:
        yield found


@pytest.fixture(scope="module")
def context():
    """One for all notebooks, so that JupyterLab's scripts are fetched once."""
    with browser.chromium() as chromium:
        context = chromium.new_context(viewport={"width": 1280, "height": 1500})
        context.set_default_timeout(120_000)
        yield context


@pytest.fixture
def page(context):
    page = context.new_page()
    page.asked, page.errors = set(), []
    for event in ("request", "websocket"):
        page.on(event, lambda asked: page.asked.add(re.match(r"\w+:(//[^:/]*)?", asked.url)[0]))
    page.on("pageerror", lambda error: page.errors.append(error))
    yield page
    page.close()


@pytest.mark.parametrize("name", SHOWN)
def test_run_all_in_jupyterlab(lab, page, name):
    path = FOLDER / f"{name}.ipynb"
    browser.open_notebook(page, lab, path.name)
    browser.run_all(page)
    cells = [cell for cell in solved(path, SHOWN[name]).cells if cell.cell_type == "code"]
    found = browser.outputs(page)
    assert len(found) == len(cells)
    assert_all_pass([outputs for cell, outputs in zip(cells, found, strict=True) if cell.id.endswith("-check")])
    found = [output for outputs in found for output in outputs]
    for output in found:
        assert output["output_type"] != "error", output
        assert output.get("name") != "stderr", output
    stored = {cell.source: cell.outputs for cell in read(path).cells if cell.cell_type == "code"}
    plots = count_plots(found)
    assert plots == count_plots(output for cell in cells for output in stored.get(cell.source, []))
    # and not only in the notebook: drawn on the page
    page.wait_for_function(f"() => {browser.DRAWN_PLOTS} === {plots}")
    browser.screenshots(page, SCREENSHOTS, name)
    if name == KEYS:
        move_keys_by_keyboard(page, name)
        read_keys_by_keyboard(page, name)
    if name == SIZES:
        choose_a_size_by_keyboard(page, name)
    if name == EVALUATION:
        explore_by_keyboard(page, name)
        strip_by_keyboard(page, name)
        browse_by_keyboard(page, name)  # it opens another row in the explorer
    if name == SUPPRESSOR:
        suppress_by_keyboard(page, name)
    if name == LOSS:
        move_loss_by_keyboard(page, name)
    assert page.errors == []
    assert page.asked <= {"http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:"}, page.asked
    browser.shut_down(page)


def count_plots(outputs):
    return sum("image/png" in output.get("data", {}) for output in outputs)


def move_keys_by_keyboard(page, name):
    """Put a key into a corner, where it dies, and revive it: with no mouse."""
    menu = page.get_by_role("combobox", name="Key", exact=True)
    bench, press = page.locator(".widget-vbox").filter(has=menu), page.keyboard.press
    said, table = bench.get_by_role("status"), bench.get_by_role("table")
    menu.focus()
    press("ArrowDown")
    bench.locator(".kv-chosen").get_by_role("rowheader", name="1", exact=True).wait_for()
    assert said.inner_text().startswith("4 of 10 keys dead") and numbers(table)[1][0] > 100
    for label in ("First dimension", "Second dimension"):
        tab_to(page, bench.get_by_role("slider", name=label))
        press("End")  # where no vector is
    bench.get_by_text("5 of 10 keys dead").wait_for()
    assert numbers(table)[1] == [0, 1]
    tab_to(page, bench.get_by_role("button", name="One update step"))
    for count in (0.8, 0.64):
        press("Enter")
        bench.get_by_role("row", name=f"1 0 {count:.4f}").wait_for()
    bench.screenshot(path=SCREENSHOTS / f"{name}-bench.png")
    tab_to(page, bench.get_by_role("button", name="Revive dead keys"))
    press("Space")
    bench.get_by_role("row", name=re.compile(r"^1 \d+ 100\.0000")).wait_for()
    tab_to(page, bench.get_by_role("button", name="Another start"))
    press("Enter")
    bench.get_by_role("row", name=re.compile(r"^0 \d+ 1\.0000")).wait_for()
    assert all(count == 1 for _, count in numbers(table))
    theme(page, "JupyterLab Dark", "false")
    bench.screenshot(path=SCREENSHOTS / f"{name}-bench-dark.png")
    theme(page, "JupyterLab Light", "true")
    assert page.evaluate("window.jupyterapp.shell.currentWidget.content.model.cells.length") == page.cells


def tab_to(page, control):
    """Press Tab until a control has the focus: at most three times, for a slider's number is a stop, too."""
    for _ in range(3):
        page.keyboard.press("Tab")
        # a slider gets its name when it gets the focus
        if control.count() and control.evaluate("control => control === document.activeElement"):
            return
    raise AssertionError(f"Tab does not lead to {control}")


def theme(page, name, is_light):
    page.evaluate(f"window.jupyterapp.commands.execute('apputils:change-theme', {{theme: '{name}'}})")
    page.wait_for_function(f"document.body.dataset.jpThemeLight === '{is_light}'")


def read_keys_by_keyboard(page, name):
    """Find the pair read, choose one of its tokens, type a word: with no mouse, and with no word on values."""
    sentence = page.get_by_label("Sentence", exact=True)
    explorer, press = page.locator(".widget-vbox").filter(has=sentence), page.keyboard.press
    assert [sentence.input_value(), explorer.get_by_label("Second, for a pair").input_value()] == list(PAIR)
    sentence.focus()
    tab_to(page, explorer.get_by_role("combobox", name="Token"))
    press("Home")
    for _ in range(4):
        press("ArrowDown")  # [CLS] the young nurse thanked
    explorer.get_by_text("Keys that thanked fired").wait_for()
    assert explorer.get_by_role("slider").count() == 0 and "push" not in explorer.inner_text()
    explorer.screenshot(path=SCREENSHOTS / f"{name}-explorer.png")
    theme(page, "JupyterLab Dark", "false")
    explorer.screenshot(path=SCREENSHOTS / f"{name}-explorer-dark.png")
    sentence.focus()
    press("Control+a")
    page.keyboard.type("nurse")
    press("Enter")
    explorer.get_by_text("Keys that nurse fired").or_(explorer.get_by_text("Keys that [CLS] fired")).wait_for()


def explore_by_keyboard(page, name):
    """Type a pair, read the tables, choose a token, switch its key off: with no mouse."""
    page.set_viewport_size({"width": 1280, "height": 2600})  # all of it in one picture
    explorer = page.locator(".widget-vbox").filter(has=page.get_by_label("Sentence", exact=True))
    press, table = page.keyboard.press, explorer.get_by_role("table").filter
    thanked = explorer.get_by_role("row", name="19 thanked")
    thanked.wait_for()  # it starts with the pair
    explorer.get_by_label("Sentence", exact=True).focus()
    for number, sentence in enumerate(PAIR):
        if number:
            press("Tab")
        retype(page, "nurse")
        thanked.wait_for(state="hidden")
        retype(page, sentence)
        thanked.wait_for()
    assert "Checked: the pushes sum to the model's logits" in explorer.inner_text()
    logits = table(has_text="Logits, with the value")
    before = numbers(logits)
    for value in before:
        # label, before, after, change, probability before and after; not yet changed
        assert value[0] == value[1] and value[2] == 0 != value[0]

    chosen = {}
    for label in ("Token", "Codebook", "Value of its key", "Value times"):
        press("Tab")
        chosen[label] = explorer.get_by_role("slider" if label == "Value times" else "combobox", name=label)
        assert chosen[label].evaluate("control => control === document.activeElement"), label
        if label == "Token":
            press("Home")
            for _ in range(4):
                press("ArrowDown")  # [CLS] the young nurse thanked
            explorer.get_by_text("Keys of token 4 thanked").wait_for()
    explorer.screenshot(path=SCREENSHOTS / f"{name}-explorer.png")
    assert "as it is" in logits.locator("caption").inner_text()
    for _ in range(10):
        press("ArrowLeft")  # from 1.0 to 0.0
    explorer.get_by_text("switched off", exact=False).first.wait_for()
    after = numbers(logits)
    for old, new in zip(before, after, strict=True):
        assert new[0] == old[0] and new[1] == pytest.approx(new[0] + new[2], abs=2e-4)
        assert new[2] != 0
    explorer.screenshot(path=SCREENSHOTS / f"{name}-explorer-off.png")

    press("End")  # to 2.0
    press("Shift+Tab")
    press("End")
    explorer.get_by_text(re.compile(r"replaced by that of key \d+, times 2.0")).wait_for()
    assert numbers(logits) != after
    assert page.evaluate("window.jupyterapp.shell.currentWidget.content.model.cells.length") == page.cells
    in_both_themes(page, explorer, f"{name}-explorer-swapped")


def retype(page, text):
    """Write over what stands in the focused field, and press Enter."""
    page.keyboard.press("Control+a")
    page.keyboard.type(text)
    page.keyboard.press("Enter")


def choose_a_size_by_keyboard(page, name):
    """Choose the fewest codebooks and keys in the menus, read table and picture: with no mouse."""
    menu = page.get_by_role("combobox", name="Codebooks C")
    bench = page.locator(".widget-vbox").filter(has=menu)
    table, ring = bench.get_by_role("table"), bench.locator("svg circle").first
    menu.focus()
    before = ring.get_attribute("cx"), ring.get_attribute("cy")
    page.keyboard.press("Home")
    bench.get_by_text("C = 1, K = 256, beside").wait_for()
    page.keyboard.press("Tab")
    assert page.get_by_role("combobox", name="Keys K").evaluate("menu => menu === document.activeElement")
    page.keyboard.press("Home")
    bench.get_by_text("C = 1, K = 2, beside").wait_for()
    assert table.get_by_role("row", name="bits a token").inner_text().split("\t")[1:] == ["1", "256"]
    assert (ring.get_attribute("cx"), ring.get_attribute("cy")) != before
    in_both_themes(page, bench, f"{name}-sizes")


def suppress_by_keyboard(page, name):
    """Choose the first class in the menu and read the confusions before and after: with no mouse."""
    menu = page.get_by_role("combobox", name="Suppress")
    suppressor = page.locator(".widget-vbox").filter(has=menu)
    table = suppressor.get_by_role("table")
    menu.focus()
    before = numbers(table)
    page.keyboard.press("ArrowDown")
    suppressor.get_by_text(re.compile(r"suppressed: [\d,]+ of 8,192 pairs switched off")).wait_for()
    after = numbers(table)
    # columns: no answer, then the classes; most of its rows were right, and now hardly one is
    assert before[0][1] > 15 > 3 > after[0][1]
    assert [sum(row) for row in after] == [sum(row) for row in before] == [30] * 10
    in_both_themes(page, suppressor, f"{name}-suppressor")


def strip_by_keyboard(page, name):
    """Switch keys off, all of them at last, and choose a token: with no mouse."""
    slider = page.get_by_role("slider", name="Strongest keys switched off")
    strip = page.locator(".widget-vbox").filter(has=page.get_by_role("combobox", name="Keys of token"))
    table, press = strip.get_by_role("table").filter, page.keyboard.press
    answers = table(has_text="Answers; the lead is")
    strip.get_by_role("slider").focus()
    assert slider.evaluate("control => control === document.activeElement")
    before = shares(answers)
    press("ArrowRight")
    strip.get_by_text(re.compile(r"^5 of \d+ keys$")).first.wait_for()
    after = shares(answers)
    assert all(new[0] < old[0] and new[-1] < old[-1] for old, new in zip(before, after, strict=True))
    in_both_themes(page, strip, f"{name}-strip")
    press("End")
    strip.get_by_text(re.compile(r"^(\d+) of \1 keys$")).first.wait_for()
    assert all(abs(row[0]) < 1e-3 and row[-1] == 0.5 for row in shares(answers))  # no key left, no verdict
    press("Home")
    menu = strip.get_by_role("combobox")
    while not menu.evaluate("control => control === document.activeElement"):
        press("Tab")  # past the slider's number
        assert strip.evaluate("bench => bench.contains(document.activeElement)")
    press("Home")
    table(has_text="fires another key in the near miss").filter(has_text="[CLS]").wait_for()


def browse_by_keyboard(page, name):
    """Choose a cell of the confusion table and a row of it, and find the row in the explorer: with no mouse."""
    menu = page.get_by_role("combobox", name="Cell of the table")
    browser_, press = page.locator(".widget-vbox").filter(has=menu), page.keyboard.press
    sentence = page.get_by_label("Sentence", exact=True)
    menu.focus()
    assert sentence.input_value() == PAIR[0]
    press("ArrowDown")
    browser_.get_by_text("Choose a row").wait_for()
    press("Tab")
    press("ArrowDown")
    said = browser_.get_by_text(re.compile(r"^Open in the explorer: row \d+, labelled"))
    said.wait_for()
    assert sentence.input_value() in said.inner_text() and sentence.input_value() != PAIR[0]
    in_both_themes(page, browser_, f"{name}-errors")


def in_both_themes(page, bench, name):
    """Take a picture of a bench in the light and in the dark theme."""
    for theme, ending in (("Dark", "-dark"), ("Light", "")):
        page.evaluate(
            f"window.jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {theme}'}})"
        )
        page.wait_for_function(f"document.body.dataset.jpThemeLight === '{str(theme == 'Light').lower()}'")
        bench.screenshot(path=SCREENSHOTS / f"{name}{ending}.png")


def shares(table):
    """The numbers of a table whose second column says how many keys are off: the lead and the probabilities."""
    rows = table.locator("tbody tr").all()
    return [[float(text.replace("−", "-")) for text in row.locator("td").all_inner_texts()[1:]] for row in rows]


def move_loss_by_keyboard(page, name):
    """Soften, drop T², give the teacher all the weight, move a logit, change the label: with no mouse."""
    temperature = page.locator(".widget-slider", has_text="Temperature T")
    bench = page.locator(".widget-vbox").filter(has=temperature).first
    press, table = page.keyboard.press, bench.get_by_role("table").filter
    temperature.get_by_role("slider").focus()
    assert bench.get_by_role("slider", name="Temperature T").count() == 1  # named once it has the focus
    for _ in range(4):
        press("ArrowRight")  # from 2.0 to 4.0
    bench.get_by_text("Probabilities at T = 4.0", exact=False).wait_for()
    loss, gradient = table(has_text="Loss, with"), table(has_text="Gradient of the loss")
    before = numbers(loss), numbers(gradient)
    assert before[0][0][1] == 8  # alpha · T²
    for control in ("alpha (teacher's)", "KL times T²"):
        press("Tab")  # to the number beside the slider, which can be typed as well
        press("Tab")
        press("End" if control.startswith("alpha") else "Space")
    bench.get_by_text("alpha (no T²)", exact=False).wait_for()
    after = numbers(loss), numbers(gradient)
    assert [row[1] for row in after[0]] == [1, 0]
    # twice the weight of the teacher, a sixteenth of the square; the label has no part any more
    assert [row[0] for row in after[1]] == pytest.approx([row[0] / 8 for row in before[1]], abs=1e-4)
    assert all(row[1] == 0 for row in after[1])
    press("Tab")
    press("ArrowDown")
    bench.locator(".kv-chosen", has_text="contradiction").first.wait_for()
    old = gradient.get_by_role("row", name="neutral").locator("td").first.inner_text()
    bench.locator(".widget-slider", has_text="Student: neutral").get_by_role("slider").focus()
    press("End")
    gradient.filter(has_not_text=old).wait_for()
    assert numbers(gradient)[1][0] > after[1][1][0]  # a larger logit, a larger gradient
    in_both_themes(page, bench, f"{name}-loss")


def numbers(table):
    """The numbers of the body of a table, row by row."""
    rows = table.locator("tbody tr").all()
    return [[float(text.replace("−", "-")) for text in row.locator("td").all_inner_texts()] for row in rows]
