from __future__ import annotations

import altair as alt

from vkvdb import charting


def test_a_chart_keeps_what_it_says_unbroken():
    long = "a sentence of so many words that no title takes it in one line"
    assert charting.wrapped([long, "one-two", ""], 20)[-1] == "one-two"
    made = charting.styled(alt.vconcat(alt.Chart().mark_point().properties(title="x")), [[long, "more"], ["other"]])
    spec = made.to_dict()
    assert charting.findings_of(spec) == [[long, "more"], ["other"]]
    assert spec["config"]["axis"]["labelColor"] == charting.INK
    made.config["axis"]["labelColor"] = "red"
    assert charting.styled(alt.vconcat(), []).config["axis"]["labelColor"] == charting.INK


def test_a_chart_of_ones_own_says_its_titles():
    spec = {"hconcat": [{"title": {"text": ["one", "and two"]}}, {"vconcat": [{"title": "three"}, {}]}]}
    assert charting.findings_of(spec) == [["one; and two"], ["three"]]
    assert charting.findings_of({"title": "whole", **spec}) == [["whole"]]
    assert charting.findings_of({"usermeta": {"mine": 1}}) == []
