import numpy as np
import pytest
import torch
from torch import nn

from physio_models.decoder import TokenDecoder, TokenDecoderConfig, generate, with_vocabulary
from physio_models.objectives.autoregressive import Autoregressive, next_token_loss

BOTH = pytest.mark.parametrize("positions", ["rotary", "learned"])


def built(**changes) -> TokenDecoder:
    torch.manual_seed(0)
    model = TokenDecoderConfig.preset("tiny", **changes).build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # the signal head's gates
                parameter.normal_(std=0.2)
        model.embed.weight *= 20  # far apart, so that ids matter
    return model


def ids(n: int = 3, length: int = 10, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 40, (n, length), generator=torch.Generator().manual_seed(seed))


def test_the_originals_size_has_its_number_of_parameters():
    with torch.device("meta"):
        model = TokenDecoderConfig.preset("reference").build()
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == 49.38
    assert (model.cfg.n_ids, model.cfg.n_positions) == (10_259, 2048)


@BOTH
@pytest.mark.parametrize("at", [0, 4, 9])
def test_no_logit_knows_the_future(positions: str, at: int):
    model, x = built(positions=positions), ids()
    changed = x.clone()
    changed[:, at] = (changed[:, at] + 1) % 40
    before, after = model(x).logits_BNV, model(changed).logits_BNV
    assert torch.equal(before[:, :at], after[:, :at]) and not torch.allclose(before[:, at], after[:, at])


# Padding


@BOTH
@pytest.mark.parametrize("side", ["left", "right", "both", "inside"])
def test_padding_changes_no_real_position_wherever_it_stands(positions: str, side: str):
    model, x = built(positions=positions), ids()
    place = {"left": range(5, 15), "right": range(10), "both": range(3, 13), "inside": [0, 1, 3, 4, 6, 7, 9, 10, 12, 13]}[side]
    padded, valid_BN = torch.full((3, 15), 39), torch.zeros(3, 15, dtype=torch.bool)
    padded[:, list(place)] = x
    valid_BN[:, list(place)] = True
    for training in (False, True):
        model.train(training)
        out = model(padded, valid_BN=valid_BN)
        assert out.logits_BNV.isfinite().all(), "left padding turns attention to NaN where a row may look at nothing"
        torch.testing.assert_close(out.logits_BNV[:, list(place)], model(x).logits_BNV, rtol=1e-4, atol=1e-5)
    encoded = model.eval().encode(padded, valid_BT=valid_BN)
    torch.testing.assert_close(encoded.pooled_BD, model.encode(x).pooled_BD, rtol=1e-4, atol=1e-5)
    assert not encoded.tokens_BND[~valid_BN].any() and torch.equal(model.token_valid(valid_BN)["block2"], valid_BN)


def test_the_loss_is_the_cross_entropy_of_real_next_tokens():
    logits, x = torch.randn(2, 6, 40, generator=torch.Generator().manual_seed(2)), ids(2, 6)
    valid_BN = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]).bool()
    z = logits.double().numpy()
    log = z - np.log(np.exp(z).sum(-1, keepdims=True))
    pairs = [(0, 2), (0, 3), (0, 4), (1, 0), (1, 1)]
    assert next_token_loss(logits, x, valid_BN).item() == pytest.approx(-np.mean([log[b, n, x[b, n + 1]] for b, n in pairs]), rel=1e-5)
    everything = [(b, n) for b in range(2) for n in range(5)]
    assert next_token_loss(logits, x, None).item() == pytest.approx(-np.mean([log[b, n, x[b, n + 1]] for b, n in everything]), rel=1e-5)


@pytest.mark.parametrize("by_id", [True, False])
def test_padded_training_is_training_on_what_is_real(by_id: bool, step):
    model, objective = built(pad_id=39), Autoregressive()
    x = ids() % 39
    padded = torch.cat([torch.full((3, 6), 39), x], dim=1)
    items = {"tokens": padded, "index": torch.arange(3)}
    if not by_id:
        items["valid"] = (torch.arange(16) >= 6).expand(3, -1)
    assert objective(model, items, step).total.item() == pytest.approx(objective(model, {"tokens": x, "index": torch.arange(3)}, step).total.item(), rel=1e-4)


# Generation


@BOTH
def test_a_cache_gives_the_logits_of_the_full_pass(positions: str):
    model, x = built(positions=positions), ids()
    full = model(x).logits_BNV
    logits_BV, memory = model.prefill(x[:, :4], 12)
    torch.testing.assert_close(logits_BV, full[:, 3], rtol=1e-4, atol=1e-5)
    for n in range(4, 10):
        torch.testing.assert_close(model.extend(x[:, n], memory), full[:, n], rtol=1e-4, atol=1e-5)


def greedy(model: TokenDecoder, prompt: list[int], n_new: int) -> list[int]:
    """The whole prefix anew for every token, one item at a time."""
    for _ in range(n_new):
        prompt = [*prompt, int(model(torch.tensor([prompt])).logits_BNV[0, -1].argmax())]
    return prompt[-n_new:]


@BOTH
@pytest.mark.parametrize("left", [True, False])
def test_prompts_of_different_lengths_continue_as_if_alone(positions: str, left: bool):
    model, x = built(positions=positions), ids()
    lengths, valid_BN, padded = (10, 4, 1), torch.zeros(3, 10, dtype=torch.bool), torch.full((3, 10), 39)
    for b, n in enumerate(lengths):
        place = slice(10 - n, 10) if left else slice(0, n)
        padded[b, place], valid_BN[b, place] = x[b, :n], True
    made = generate(model, padded, 8, valid_BN=valid_BN)
    assert made.ids_BN.tolist() == [greedy(model, x[b, :n].tolist(), 8) for b, n in enumerate(lengths)]
    assert made.valid_BN.all()


def test_an_item_ends_with_the_end_token_and_generation_with_the_last_item():
    model, x = built(), ids()
    free = generate(model, x, 20).ids_BN
    end = int(free[0, 3])
    made = generate(model, x, 20, end_id=end)
    for b, row in enumerate(free.tolist()):
        n = row.index(end) + 1 if end in row else 20
        assert made.valid_BN[b].sum() == min(n, made.ids_BN.shape[1]) and made.ids_BN[b, : made.valid_BN[b].sum()].tolist() == row[:n]
    assert generate(model, x[:1], 20, end_id=end).ids_BN.shape[1] == free[0].tolist().index(end) + 1


def test_forbidden_ids_never_come():
    model, x = built(), ids()
    banned = set(generate(model, x, 10).ids_BN.flatten().tolist())
    assert not banned & set(generate(model, x, 10, forbidden=sorted(banned)).ids_BN.flatten().tolist())


def test_drawn_tokens_follow_the_softmax_of_the_likeliest():
    model, x = built(), ids(1).expand(4000, -1)
    logits = model(x[:1]).logits_BNV[0, -1].detach().double().numpy() / 0.7
    top = np.argsort(-logits)[:3]
    share = np.exp(logits[top] - logits[top].max())
    drawn = generate(model, x, 1, temperature=0.7, top_k=3, generator=torch.Generator().manual_seed(0)).ids_BN[:, 0].numpy()
    np.testing.assert_allclose([(drawn == t).mean() for t in top], share / share.sum(), atol=0.03)


@pytest.mark.parametrize("tied", [True, False])
def test_a_larger_vocabulary_keeps_what_was_learnt(tied: bool):
    model = built(tied=tied)
    grown = with_vocabulary(model, 50)
    assert grown.cfg.n_ids == 50 and not grown.training
    torch.testing.assert_close(grown(ids()).logits_BNV[..., :40], model(ids()).logits_BNV)
    assert grown(torch.full((1, 3), 49)).logits_BNV.isfinite().all()
    with pytest.raises(ValueError, match="n_ids must be at least the 40"):
        with_vocabulary(model, 39)


# The signal head


def test_the_signal_head_reads_the_tokens_and_not_their_padding():
    model, x = built(head_depth=2), ids()
    signal, level_B = torch.randn(3, 3, 160, generator=torch.Generator().manual_seed(3)), torch.full((3,), 0.5)
    velocity = model(x, noised_BCT=signal, level_B=level_B).velocity_BCT
    padded, valid_BN = torch.cat([torch.full((3, 4), 39), x], 1), (torch.arange(14) >= 4).expand(3, -1)
    torch.testing.assert_close(model(padded, valid_BN=valid_BN, noised_BCT=signal, level_B=level_B).velocity_BCT, velocity, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(model(ids(seed=9), noised_BCT=signal, level_B=level_B).velocity_BCT, velocity)
    assert not torch.allclose(model(x, noised_BCT=signal, level_B=level_B / 2).velocity_BCT, velocity)


def test_the_signal_head_reads_neither_noise_past_a_short_tail_nor_a_lost_channel():
    """The real samples of item 0 are 84, which end within a patch of 8; item 1 is whole."""
    model, x, draw = built(head_depth=2), ids(2), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    valid_BT, present_BC = torch.arange(160) < torch.tensor([[84], [160]]), torch.tensor([[True, True, True], [True, False, True]])
    noised, level_B = torch.randn(2, 3, 160, generator=draw), torch.full((2,), 0.5)
    real_BCT = valid_BT[:, None] & present_BC[..., None]
    masks = {"signal_valid_BT": valid_BT, "channel_present_BC": present_BC}
    first, second = (model(x, noised_BCT=z, level_B=level_B, **masks).velocity_BCT for z in (noised, torch.where(real_BCT, noised, 9.0)))
    assert torch.equal(first[real_BCT], second[real_BCT])
    plain = model(x, noised_BCT=noised, level_B=level_B).velocity_BCT
    assert not torch.allclose(first[0, :, :80], plain[0, :, :80], atol=1e-3) and not torch.allclose(first[1, 0], plain[1, 0], atol=1e-3)


def test_the_signal_head_starts_by_saying_zero():
    model = TokenDecoderConfig.preset("tiny", head_depth=2).build()
    assert not model(ids(), noised_BCT=torch.randn(3, 3, 160), level_B=torch.rand(3)).velocity_BCT.any()


def with_signal(n: int = 3) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(4)
    return {"tokens": ids(n), "index": torch.arange(n), "signal": torch.randn(n, 3, 160, generator=draw)}


def test_joint_training_adds_the_heads_error_over_real_samples(step):
    model, items = built(head_depth=1), with_signal() | {"signal_valid": (torch.arange(160) < 100).expand(3, -1)}
    loss = Autoregressive(flow_weight=0.5)(model, items, step)
    assert loss.total.item() == pytest.approx(loss.parts["ce"].item() + 0.5 * loss.parts["flow"].item(), rel=1e-5)
    noise = step.streams.normal("noise", items["index"], (3, 160))
    t_B11 = step.streams.uniform("time", items["index"], (1,))[..., None]
    noised = (1 - t_B11) * noise + t_B11 * items["signal"]
    velocity = model(items["tokens"], noised_BCT=noised, level_B=1 - t_B11[:, 0, 0], signal_valid_BT=items["signal_valid"]).velocity_BCT
    expected = ((velocity - (items["signal"] - noise)).double()[..., :100] ** 2).mean()
    assert loss.parts["flow"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_frozen_decoder_is_left_alone_while_its_head_learns(step):
    model = TokenDecoderConfig.preset("tiny", head_depth=1, freeze_decoder=True).build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(10):
        loss = Autoregressive()(model, with_signal(), step)
        assert loss.total.item() == pytest.approx(loss.parts["flow"].item())
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(loss.total.item())
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved and all(key.startswith("head.") for key in moved) and losses[-1] < losses[0]


# Refusals


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda m: m(torch.zeros(2, 3, 40)), "integers without a channel axis"),
        (lambda m: m(torch.zeros(2, 49, dtype=torch.long)), "has 49 tokens, the model takes up to 48"),
        (lambda m: m(ids(), valid_BN=torch.ones(3, 9, dtype=torch.bool)), r"valid_BN must be \(3, 10\)"),
        (lambda m: m(ids(), noised_BCT=torch.zeros(3, 3, 160), level_B=torch.zeros(3)), "needs a signal head"),
        (lambda m: m.encode(ids(), channel_present_BC=torch.ones(3, 1)), "channel_present_BC must be None"),
        (lambda m: generate(m, ids(), 40), "exceed the model's context of 48"),
        (lambda m: generate(m, ids(), 0), "n_new and top_k must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(call, match: str):
    with pytest.raises(ValueError, match=match):
        call(built())


def test_a_batch_without_tokens_is_refused(step):
    with pytest.raises(ValueError, match="the batch has no 'tokens', only signal, index"):
        Autoregressive()(built(), {"signal": torch.zeros(1, 3, 160), "index": torch.arange(1)}, step)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"positions": "sincos"}, "positions"),
        ({"pad_id": 40}, "pad_id must lie in"),
        ({"freeze_decoder": True}, "give head_depth"),
        ({"head_depth": 1, "head_patch": 7}, "head_patch=7"),
        ({"n_ids": 0}, "n_ids"),
        ({"width": 12, "n_heads": 4}, "even"),
    ],
)
def test_a_config_checks_itself(bad: dict, match: str):
    with pytest.raises(ValueError, match=match):
        TokenDecoderConfig.preset("tiny", **bad)


def test_an_objective_checks_itself():
    with pytest.raises(ValueError, match="flow_weight"):
        Autoregressive(flow_weight=0.0)


def test_every_module_of_a_frozen_decoder_but_the_head_asks_for_no_gradient():
    model: nn.Module = TokenDecoderConfig.preset("tiny", head_depth=1, freeze_decoder=True).build()
    assert all(p.requires_grad == name.startswith("head.") for name, p in model.named_parameters())
