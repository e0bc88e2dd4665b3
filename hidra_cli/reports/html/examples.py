"""The section of examples: a task's classes, queries, and what the model took them for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hidra_cli.reports.collect import Report
from hidra_cli.reports.html.charts import bar
from hidra_cli.reports.html.markup import Html, counted, details, scrolling, section, tag
from hidra_cli.reports.solved_tasks import NO_LABEL, SolvedTask

_MOST_COLUMNS = 20  # of a confusion table
_MOST_OPEN = 5  # classes whose images are shown without asking


def examples(report: Report) -> list[Html]:
    alone = len(report.runs) == 1
    parts = [
        _task(task, alone, name)
        for name, tasks in zip(report.names, report.tasks, strict=True)
        for task in tasks
    ]
    if not parts:
        return []
    about = tag(
        "p",
        "Episode 0 of the test split with seed 0: classes the model never saw. It learns them from "
        "the support images, then labels the queries. The same command draws the same task again.",
        class_="soft",
    )
    return section("A task, image by image", about, *parts)


def _task(task: SolvedTask, alone: bool, name: str) -> Html:
    title = f"{task.ways} ways, {counted(task.shots, 'shot')}"
    steps = " → ".join(f"{100 * share:.1f} %" for share in _ends(task.accuracies))
    taken = counted(len(task.accuracies) - 1, "inner step")
    told = tag(
        "p",
        f"Query accuracy before and after {taken}: {steps}. "
        f"{task.queries_per_class} queries per class, {task.normalization} normalization.",
    )
    blocks = [_class(task, label) for label in range(len(task.support)) if task.support[label]]
    shown = len(task.queries[0]) if task.queries else 0
    images = [_shown(task, shown, len(blocks)), *blocks] if blocks else []
    title = title if alone else f"{name}: {title}"
    if images and (task.ways > _MOST_OPEN or not alone):
        images = [details(f"Images of {title}", *images)]
    heading = tag("h3", title)
    return tag("div", tag("div", heading, told, _confusion(task), class_="keep"), *images)


def _ends(accuracies: Sequence[float]) -> list[float]:
    return [accuracies[0], accuracies[-1]] if len(accuracies) > 1 else [accuracies[-1]]


def _shown(task: SolvedTask, queries: int, classes: int) -> Html:
    part = f"the first {queries} of {task.queries_per_class} queries per class"
    if queries == task.queries_per_class:
        part = "all queries"
    some = "" if classes == task.ways else f" of the first {classes} classes"
    told = (
        f"Below: the support images and {part}{some}. ✓ is a query labelled right; "
        "✗ in a dashed frame is one labelled wrong, with the class it was taken for."
    )
    return tag("p", told, class_="soft")


def _key(label: int, ways: int) -> str:
    """A short name for a class of a task."""
    if label == NO_LABEL:
        return "none"
    return chr(ord("A") + label) if ways <= 26 else str(label + 1)


def _confusion(task: SolvedTask) -> Html:
    """Accuracy of each class, and what its queries were taken for."""
    keys = [_key(label, task.ways) for label in range(task.ways)]
    some_none = any(row[NO_LABEL] for row in task.confusion)
    wide = task.ways > _MOST_COLUMNS
    labels = [] if wide else [*range(task.ways), *([NO_LABEL] if some_none else [])]
    head = tag(
        "tr",
        tag("th", "true class", scope="col"),
        *(tag("th", _key(label, task.ways), scope="col", class_="cell") for label in labels),
        tag("th", "right, %", scope="col", class_="number"),
    )
    rows = []
    for label, name in enumerate(task.classes):
        row, share = task.confusion[label], task.per_class[label]
        cells = [_cell(row[given], given == label, task.queries_per_class) for given in labels]
        result = tag("td", f"{100 * share:.1f}", bar(share), class_="number")
        named = tag("th", tag("span", keys[label], class_="key"), " ", name, scope="row")
        rows.append(tag("tr", named, *cells, result))
    columns = "" if wide else ", and the class they were labelled as (columns)"
    caption = f"Queries of each class (rows){columns}"
    body = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *rows))
    return scrolling(caption, body)


def _cell(count: int, right: bool, most: int) -> Html:
    depth = -(-4 * count // most)  # of four, rounded up
    kind = f" {'hit' if right else 'miss'}{depth}" if count else " soft"
    return tag("td", str(count), class_=f"cell{kind}")


def _class(task: SolvedTask, label: int) -> Html:
    """One class's support images, and its queries with their labels."""
    key = _key(label, task.ways)
    count = round(task.per_class[label] * task.queries_per_class)
    support = [
        tag("li", _image(uri, f"support image {i + 1} of class {key}", task.side))
        for i, uri in enumerate(task.support[label])
    ]
    queries = []
    for i, uri in enumerate(task.queries[label]):
        given = task.predicted[label][i]
        right, taken = given == label, _key(given, task.ways)
        said = "labelled right" if right else f"labelled wrong, as {taken}"
        image = _image(uri, f"query {i + 1} of class {key}, {said}", task.side)
        mark = f"✓ {taken}" if right else f"✗ {taken}"
        queries.append(tag("li", image, mark, class_="right" if right else "wrong"))
    return tag(
        "div",
        tag("h4", f"{key} · {task.classes[label]}"),
        tag("div", tag("p", "learned from", class_="small soft"), _row(support)),
        tag(
            "div",
            tag("p", f"{count} of {task.queries_per_class} right", class_="small soft"),
            _row(queries),
        ),
        class_="task",
    )


def _row(items: Iterable[Html]) -> Html:
    return tag("ul", *items, class_="queries")


def _image(uri: str, alt: str, side: int) -> Html:
    return tag("img", src=uri, alt=alt, width=side, height=side)
