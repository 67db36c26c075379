"""Reasons: words, values and pictures."""

import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch

from advconn import bundle
from advconn.attacks.attack import Attack
from advconn.cascade.cascade import head_log_odds
from advconn.detector.explanation import CleanBaseline, reason_of
from advconn.errors import DataError
from advconn.scoring.report_page import PageEntry, page, write


@pytest.fixture(scope="module")
def attacked(classifier, digits):
    """Digits moved by a strong attack, which is flagged."""
    images, labels = classifier.check(digits[0][1400:1440]), digits[1][1400:1440]
    return Attack.parse("pgd:eps=0.2").run(classifier, images, labels)


@pytest.fixture(scope="module")
def seen(detector, attacked):
    """Judged through every stage, one that its copies disagree on first."""
    return detector.judge(attacked, full=True)


def typical(detector):
    return CleanBaseline(detector.cascade_, detector.typical_)


def test_votes_and_consensus_are_what_the_copies_are_given(detector, classifier, attacked, seen):
    """Worked out again from the copies themselves."""
    walk = detector.cascade_.connectivities[-1]
    from advconn.features.transforms import COPIES

    said = torch.stack([classifier.logits(COPIES[name](attacked)).argmax(1) for name in walk.copies], 1)
    for i in range(len(attacked)):
        np.testing.assert_array_equal(seen.votes[i], said[i])
        counts = torch.bincount(said[i], minlength=10)
        assert counts[int(seen.consensus[i])] == counts.max()


def test_the_reason_counts_the_copies_and_tells_the_barrier(detector, seen):
    """The numbers in the sentence are those of the judgement."""
    rows = np.flatnonzero(seen.consensus != seen.predicted)
    assert len(rows)
    for i in rows:
        text = detector.reasons(seen)[i]
        said = int((seen.votes[i] == seen.consensus[i]).sum())
        assert text.startswith(f"{said} of {len(seen.votes[i])} copies say {seen.consensus[i]}")
        height = float(seen.barrier[i])
        if height >= 1e-3:
            assert f"{height:.2g} (clean: " in text
        else:
            assert "no barrier on the line" in text


def test_what_else_is_told_where_the_copies_agree(detector, seen):
    """A flagged image whose copies all keep its class: not a word of copies that say another."""
    i = int(np.flatnonzero(seen.stage == len(detector.cascade_.connectivities))[0])
    flags, votes = seen.adversarial.copy(), list(seen.votes)
    flags[i], votes[i] = True, np.full_like(votes[i], seen.predicted[i])
    kept = seen.consensus.copy()
    kept[i] = seen.predicted[i]
    text = reason_of(typical(detector), replace(seen, adversarial=flags, votes=tuple(votes), consensus=kept), i)
    assert text.startswith(f"{len(votes[i])} of {len(votes[i])} copies say {seen.predicted[i]} too; but ")


def test_an_image_that_cannot_be_judged_has_its_error_as_reason(detector, seen):
    """No votes are made up for it."""
    errors = ("the classifier gives NaN for it", *seen.errors[1:])
    assert reason_of(typical(detector), replace(seen, errors=errors), 0) == errors[0]


def test_what_weighs_is_the_same_for_one_image_and_for_many(detector, classifier, digits, attacked):
    """Images that left at different stages, each by the head of its last one."""
    judged = detector.judge(torch.cat([attacked[:8], classifier.check(digits[0][1500:1530])]))
    assert len(set(judged.stage.tolist())) > 2
    groups, known = {"all": ("",), "self": ("self.",)}, typical(detector)
    whole = known.effects(judged, np.arange(38), groups)
    for i in range(38):
        alone = known.effects(judged, np.array([i]), groups)
        assert {name: float(values[0]) for name, values in alone.items()} == pytest.approx(
            {name: float(values[i]) for name, values in whole.items()}
        )
        k = judged.stage[i] - 1
        places = detector.cascade_.places[k]
        rows = np.stack([judged.features[i, places], detector.typical_[places]])
        before, after = head_log_odds(detector.cascade_.heads[k], rows)
        assert float(whole["all"][i]) == pytest.approx(before - after)


def test_an_early_leaver_has_its_votes_alone(digits):
    """No barrier is told that was not measured."""
    detector = bundle.load(bundle.default("digits"))
    judged = detector.judge(digits[0][1500:1560])
    early = np.flatnonzero(judged.stage == 1)
    assert len(early)
    for i in early:
        assert re.fullmatch(r"\d of 3 copies say \d", detector.reasons(judged)[i])


def test_explain_gives_values_and_a_figure(detector, attacked, seen):
    """Those of the judgement; the drawn line's largest value is at least the barrier read at five points."""
    told = detector.explain(attacked[0])
    assert sum(told.votes.values()) == len(seen.votes[0])
    assert told.barrier == pytest.approx(float(seen.barrier[0]), rel=1e-3, abs=1e-4)
    assert told.line.max() >= told.barrier - 1e-3
    assert told.secondary_barriers == tuple(seen.secondary_barriers[0].astype(int))
    assert len(told.figure().axes) == 4
    if told.bends:
        assert told.detour is not None
    with pytest.raises(DataError, match="one image"):
        detector.explain(attacked[:2])


def test_the_page_puts_flagged_images_first_and_runs_no_name(detector, attacked, seen, tmp_path):
    """A file name is text, also in the table that a spreadsheet opens."""
    from advconn.scoring.records import Failure, to_records

    names = ["<script>alert(1)</script>.png", "=1+1.png", *(f"{i}.png" for i in range(2, 6))]
    records = to_records(detector, [*names, *(f"{i}.png" for i in range(6, 40))], seen, 1.0)[:6]
    told = detector.explain(attacked[0])
    cases = [PageEntry(r, attacked[i].cpu(), told if i == 0 else None) for i, r in enumerate(records)]
    cases.append(PageEntry(Failure("broken.png", "broken.png: not readable")))
    html = page(cases, "flagged: p at most .05")
    kinds = re.findall(r'data-kind="(\w+)"', html)
    assert kinds == sorted(kinds, key=lambda k: k != "flagged")
    assert "<script>alert" not in html
    assert "not readable" in html
    assert "data:image/svg+xml;base64," in html
    write(lambda: (case.result for case in cases), html, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == [*names, "broken.png"]
    assert '\n"\'=1+1.png",' in (tmp_path / "results.csv").read_text()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_filters_and_sorts_the_page(detector, attacked, seen, tmp_path):
    """A script added to the page picks, types and reads back what is shown."""
    from advconn.scoring.records import to_records

    records = to_records(detector, [f"{i}.png" for i in range(40)], seen, 1.0)
    flagged = sum(r.adversarial for r in records)
    assert 0 < flagged < 40
    html = page([PageEntry(r, attacked[i].cpu()) for i, r in enumerate(records)], "about")
    asking = """<script>
const shown=()=>[...document.querySelectorAll("main article")].filter(a=>!a.hidden).map(a=>a.dataset.name);
const out={all:shown().length};kind.value="flagged";kind.onchange();out.flagged=shown().length;
kind.value="";order.value="name";order.onchange();out.names=shown().slice(0,3);
text.value="12.png";text.oninput();out.found=shown();
document.title="READ "+JSON.stringify(out)+" READ";
</script></body>"""
    file = tmp_path / "report.html"
    file.write_text(html.replace("</body>", asking))
    dump = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync",
         f"--user-data-dir={tmp_path}/profile", "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    ).stdout  # fmt: skip
    found = json.loads(dump.split("READ ")[1].split(" READ")[0].replace("&quot;", '"'))
    assert found == {"all": 40, "flagged": flagged, "names": ["0.png", "1.png", "2.png"], "found": ["12.png"]}


def test_a_sentence_fits_what_the_line_shows(detector, seen):
    """A barrier is one that exceeds both ends; an image that is cleared in doubt is said to be not unusual enough."""
    names = list(detector.cascade_.names[-1])
    gap = seen.features[:, names.index("own.gap.mean")]
    whys = detector.reasons(seen)
    for i, text in enumerate(whys):
        if seen.barrier[i] >= 1e-3:
            assert ("no barrier stands" in text) == (gap[i] < 1e-3)
        assert ("not unusual enough" in text) == (seen.consensus[i] != seen.predicted[i] and not seen.adversarial[i])
    assert (gap < 1e-3).any()
