"""Names on the command line that stand for several fields of a plan."""

from typing import get_args

import pytest

from wardround.deploy import presets
from wardround.errors import UsageError
from wardround.strategies.plan import Codec, RoundPlan

TABLES = {
    "--augment": presets.AUGMENT,
    "--memory": presets.MEMORY,
    "--distill": presets.DISTILL,
    "--codec": presets.CODEC,
}


@pytest.mark.parametrize(("option", "name"), [(option, name) for option, table in TABLES.items() for name in table])
def test_every_name_stands_for_a_plan(option: str, name: str) -> None:
    fields = presets.preset(TABLES[option], name, option)
    plan = RoundPlan(run="demo", round=1, rounds=1, seed=0, model="toy", labels=2, **fields)
    assert {field: getattr(plan, field) for field in fields} == fields


def test_a_codec_goes_by_the_name_of_what_sites_send() -> None:
    assert set(presets.CODEC) == set(get_args(Codec))
    assert all(fields.get("codec", "none") == name for name, fields in presets.CODEC.items())


@pytest.mark.parametrize("option", TABLES)
def test_another_name_is_refused_with_those_that_there_are(option: str) -> None:
    assert presets.preset(TABLES[option], None, option) == {}
    with pytest.raises(UsageError) as refused:
        presets.preset(TABLES[option], "zip", option)
    assert option in str(refused.value)
    assert all(name in refused.value.fix for name in TABLES[option])
