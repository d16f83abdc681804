"""Neighbours never cross a gap, a record or a patient; batches come in an order of their own; splits keep patients together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from physio_sae.splits import Stacked, check_disjoint, join, namespaced, patient_split
from physio_sae.triplets import Features, Triplets, input_statistics, neighbours


@pytest.fixture(scope="module")
def features(tmp_path_factory, write_features):
    return Features.open(write_features(tmp_path_factory.mktemp("planted") / "f").folder)


def test_neighbours_are_one_hop_apart_in_the_same_record(features):
    next_N = neighbours(features.index)
    here = np.flatnonzero(next_N >= 0)
    assert len(here) > 500 and (features.index["record"][here] == features.index["record"][next_N[here]]).all()
    np.testing.assert_allclose(features.index["start_s"][next_N[here]] - features.index["start_s"][here], 10)
    gaps = np.flatnonzero(np.diff(features.index["start_s"]) > 11)
    assert len(gaps) and (next_N[gaps] == -1).all()


def test_a_wrong_next_is_caught(features):
    """PulseDB numbers segments on over windows it dropped: the index may say so, the clock does not."""
    row = int(np.flatnonzero(np.diff(features.index["start_s"]) > 11)[0])
    border = int(np.flatnonzero(features.index["record"][1:] != features.index["record"][:-1])[0])
    joined = features.index["start_s"].copy()
    joined[border + 1 : border + 3] += joined[border] + 10 - joined[border + 1]  # the next record's clock runs on from this one's
    for wrong, start_s in ((row, features.index["start_s"]), (border, joined)):
        following, dt = features.index["next"].copy(), features.index["dt_next_s"].copy()
        following[wrong], dt[wrong] = wrong + 1, start_s[wrong + 1] - start_s[wrong]
        claimed = {**features.index, "next": following, "dt_next_s": dt, "start_s": start_s}
        assert neighbours(claimed)[wrong] == -1
    late = features.index["start_s"].copy()
    late[5] += 0.5
    moved = neighbours({**features.index, "start_s": late})
    assert moved[4] == -1 and moved[5] == -1 and moved[3] == 4
    quality = np.zeros(len(features), np.int64)
    quality[8] = 4
    flagged = neighbours({**features.index, "quality": quality})
    assert flagged[7] == -1 and flagged[8] == -1 and flagged[9] == 10


def test_a_batch_holds_what_it_says(features):
    rows = features.rows("train")
    triplets = Triplets(features, rows, batch_size=64, seed=3)
    for step in (0, 5, 17):
        batch = triplets.at(step)
        where = [int(np.flatnonzero((features.z_ND == z).all(1))[0]) for z in batch.z_BD]
        assert len(set(where)) == 64 and set(where) <= set(rows.tolist())
        for i, z, dt in zip(batch.pair_M, batch.next_MD, batch.dt_M, strict=True):
            np.testing.assert_array_equal(z, features.z_ND[where[i] + 1])
            assert dt == 10
        views = [(features.z_aug_AND[view][where] == batch.aug_BD).all() for view in range(2)]
        assert sum(views) == 1
    again = Triplets(features, rows, batch_size=64, seed=3, in_memory_bytes=0)
    np.testing.assert_array_equal(again.at(17).z_BD, triplets.at(17).z_BD)
    assert not np.array_equal(Triplets(features, rows, batch_size=64, seed=4).at(17).z_BD, triplets.at(17).z_BD)


@settings(max_examples=20, deadline=None)
@given(block=st.integers(1, 200), pool=st.integers(1, 9), epoch=st.integers(0, 3))
def test_an_epoch_reads_every_row_once(features, block, pool, epoch):
    rows = features.rows("train")
    triplets = Triplets(features, rows, block_rows=block, pool_blocks=pool)
    np.testing.assert_array_equal(np.sort(triplets.order(epoch)), rows)


def test_blocks_keep_reads_near_each_other(features):
    triplets = Triplets(features, np.arange(len(features)), block_rows=32, pool_blocks=2)
    order = triplets.order(0)
    assert all(len(np.unique(order[i : i + 64] // 32)) <= 2 for i in range(0, len(order) - 64, 64))


def test_a_cache_in_memory_is_read_once(features):
    triplets = Triplets(features, features.rows("train"), batch_size=100)
    for step in range(20):
        triplets.at(step)
    assert triplets.rows_read == len(features)


def test_followers_outside_the_rows_do_not_count(features):
    rows = np.flatnonzero(np.arange(len(features)) % 2 == 0)
    assert not Triplets(features, rows, needs_next=False).n_pairs


def test_statistics_give_inputs_of_mean_square_1(features):
    rows = features.rows("train")
    z = features.z_ND[rows].astype(float)
    mean, scale = input_statistics(features, rows, "scalar")
    np.testing.assert_allclose(mean, z.mean(0))
    assert scale[0] == pytest.approx(np.sqrt(np.square(z - z.mean(0)).sum(1).mean())) and (scale == scale[0]).all()
    for norm in ("scalar", "per_dim"):
        mean, scale = input_statistics(features, rows, norm)
        assert np.square((z - mean) / scale).sum(1).mean() == pytest.approx(1)
    np.testing.assert_allclose(((z - mean) / scale).std(0), 1 / np.sqrt(32), rtol=1e-9)


def test_float16_and_one_view_and_tokens_are_read(tmp_path, write_features):
    folder = write_features(tmp_path / "h", dtype="float16", n_views=1, n_subjects=4).folder
    np.save(folder / "z_aug.npy", np.load(folder / "z_aug.npy")[0])
    half = Features.open(folder)
    assert half.n_views == 1 and half.z(np.arange(3)).dtype == np.float32
    tokens = tmp_path / "t"
    write_features(tokens, n_subjects=4, n_views=0)
    z = np.load(tokens / "z.npy")
    (tokens / "z.npy").unlink()
    np.save(tokens / "tokens.npy", z.reshape(len(z), 4, 8))
    opened = Features.open(tokens)
    assert opened.z_ND.shape == (4 * len(z), 8) and opened.index["next"][5] == 9 and opened.index["token"][5] == 1
    np.testing.assert_array_equal(opened.z_ND[5], z[1, 8:16])


def test_bad_data_is_named(tmp_path, features, write_features):
    one = np.flatnonzero(features.subject == "planted:s0")
    with pytest.raises(ValueError, match="at least two patients"):
        Triplets(features, one)
    alone = Features.open(write_features(tmp_path / "alone", with_next=False, n_views=0, n_subjects=6).folder)
    with pytest.raises(ValueError, match=r"set --loss\.smooth 0"):
        Triplets(alone, alone.rows("train"), needs_aug=False)
    with pytest.raises(ValueError, match=r"set --loss\.stab 0"):
        Triplets(alone, alone.rows("train"), needs_next=False)
    with pytest.raises(ValueError, match="no row in fold nowhere"):
        features.rows("nowhere")
    with pytest.raises(ValueError, match="no task 'x'"):
        features.label("x")
    z = np.load(alone.path / "z.npy")
    z[17, 3] = np.nan
    np.save(tmp_path / "alone" / "z.npy", z)
    with pytest.raises(ValueError, match="not finite in row 17"):
        input_statistics(Features.open(alone.path), np.arange(len(z)), "scalar")
    np.save(tmp_path / "alone" / "z.npy", np.ones_like(z))
    with pytest.raises(ValueError, match="are alike"):
        input_statistics(Features.open(alone.path), np.arange(len(z)), "scalar")
    (tmp_path / "alone" / "index.h5").unlink()
    with pytest.raises(ValueError, match="has no index"):
        Features.open(alone.path)


@pytest.mark.parametrize("how", ["stratified", "hash"])
def test_a_split_keeps_patients_together_and_shares(how):
    rng = np.random.default_rng(0)
    age, sex = rng.uniform(20, 90, 400), rng.choice(["F", "M"], 400)
    index = {"subject": np.repeat([f"a:{i}" for i in range(400)], 3), "age": np.repeat(age, 3), "sex": np.repeat(sex, 3)}
    fold = patient_split(index, how=how)
    check_disjoint(index["subject"], fold)
    share = {name: (fold == name).mean() for name in ("train", "val", "test")}
    tolerance = 0.005 if how == "stratified" else 0.06
    assert abs(share["train"] - 0.7) < tolerance and abs(share["val"] - 0.15) < tolerance
    if how == "stratified":
        assert abs(index["age"][fold == "test"].mean() - age.mean()) < 2.5
        assert abs((index["sex"][fold == "test"] == "F").mean() - (sex == "F").mean()) < 0.06
    else:
        fewer = patient_split({"subject": index["subject"][:300]}, how="hash")
        np.testing.assert_array_equal(fewer, fold[:300])


def test_bad_splits_are_named():
    with pytest.raises(ValueError, match=r"1 patient\(s\) cannot fill 3 folds"):
        patient_split({"subject": np.array(["a", "a"])})
    with pytest.raises(ValueError, match="two values of sex"):
        patient_split({"subject": np.array(["a", "a", "b", "c"]), "sex": np.array(["F", "M", "F", "F"])})
    with pytest.raises(ValueError, match="patient 'a' is in folds"):
        check_disjoint(np.array(["a", "a"]), np.array(["train", "test"]))


def test_joined_folders_keep_one_person_one(tmp_path, write_features):
    parts = [Features.open(write_features(tmp_path / name, n_subjects=5, seed=i).folder) for i, name in enumerate("ab")]
    both = join(parts, ["a", "b"])
    assert len(both) == 2 * len(parts[0]) and len(np.unique(both.subject)) == 5  # "planted:s0" is named alike in both
    rows = np.array([3, len(parts[0]) + 3])
    np.testing.assert_array_equal(both.z(rows), np.stack([parts[0].z_ND[3], parts[1].z_ND[3]]))
    np.testing.assert_array_equal(both.z_aug(1, rows)[1], parts[1].z_aug_AND[1, 3])
    assert both.index["next"][len(parts[0])] == len(parts[0]) + 1
    assert Triplets(both, both.rows("train"), batch_size=32).at(0).next_MD.shape[1] == 32
    assert namespaced(np.array(["p1", "mimic3:p2"]), "x").tolist() == ["x:p1", "mimic3:p2"]
    assert Stacked([np.arange(3), np.arange(3, 5)])[np.array([4, 0])].tolist() == [4, 0]
