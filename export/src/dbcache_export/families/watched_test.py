"""What a Watch finds in an original: here two blocks whose arguments and results are like those of real ones."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dbcache_export.families.watched import Watch, Watched, keep, picture_first, text_first

TAKEN = {"hidden_states": torch.ones(1), "prompt_embeds": torch.zeros(1)}


class Block(nn.Module):
    """Gives the text first; the last one hands it on or gives None for it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        temb: Tensor | None = None,
        angle: Tensor | None = None,
    ) -> Any:
        texts = {"changes": torch.full((1,), 5.0), "hands on": encoder_hidden_states, "leaves": None}
        return texts[self.text], hidden_states + 1


class Model(nn.Module):
    def __init__(self, last: str) -> None:
        super().__init__()
        self.time = nn.Identity()
        self.blocks = nn.ModuleList([Block("changes"), Block(last)])

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, return_dict: bool) -> tuple[Tensor]:
        temb = self.time(torch.full((1,), 3.0))
        text, image = self.blocks[0](hidden_states, encoder_hidden_states, angle=temb + 1)
        _, image = self.blocks[1](image, text, temb=temb)
        return (image,)


@pytest.mark.parametrize("last", ["hands on", "leaves"])
def test_tensors_are_found_by_name_and_what_a_block_leaves_behind_is_no_output(last: str) -> None:
    model = Model(last)
    kept = keep(model.time, lambda result: {"kept": result})
    assert kept == {}
    seen: list[Any] = []
    watch = Watch(lambda taken: {"bias": taken["angle"]} if "angle" in taken else kept, text_first)
    prediction = Watched(model, list(model.blocks), watch).run(TAKEN, lambda *call: seen.append(call))
    assert prediction == 3
    (first, inputs, outputs), (second, last_inputs, last_outputs) = seen
    assert (first, second) == (0, 1)
    assert inputs == {"hidden_states": 1, "encoder_hidden_states": 0, "bias": 4}
    assert outputs == {"hidden_states": 2, "encoder_hidden_states": 5}
    assert last_inputs == {"hidden_states": 2, "encoder_hidden_states": 5, "temb": 3, "kept": 3}
    assert last_outputs == {"hidden_states": 3}


def test_streams_come_in_the_order_in_which_the_original_gives_them() -> None:
    one, two = torch.ones(1), torch.zeros(1)
    assert picture_first(one) == {"hidden_states": one}
    assert picture_first((one, two)) == {"hidden_states": one, "encoder_hidden_states": two}
    assert text_first((one, two)) == {"hidden_states": two, "encoder_hidden_states": one}
