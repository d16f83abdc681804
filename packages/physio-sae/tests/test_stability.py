"""Matching, its floor, Pareto fronts: against brute force and closed forms."""

from __future__ import annotations

import time
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from physio_sae.pareto import hypervolume, pareto_front
from physio_sae.stability import best, match_activations, match_atoms, principal_angles, random_floor


def random_atoms(n, d, seed):
    atoms = np.random.default_rng(seed).normal(size=(n, d))
    return atoms / np.linalg.norm(atoms, axis=1, keepdims=True)


def test_the_matching_is_the_best_of_all_permutations():
    a, b = random_atoms(6, 4, 0), random_atoms(6, 4, 1)
    found = match_atoms(a, b)
    cosine = a @ b.T
    assert found.mean == pytest.approx(max(np.mean([cosine[i, p] for i, p in enumerate(order)]) for order in permutations(range(6))), rel=1e-6)


def test_a_permuted_dictionary_is_found_again_and_dead_atoms_do_not_count():
    a = random_atoms(40, 16, 0)
    order = np.random.default_rng(1).permutation(40)
    found = match_atoms(a, 3.0 * a[order])
    assert found.mean == pytest.approx(1.0, abs=1e-6) and found.above_90 == 1 and (order[found.pair_P2[:, 1]] == found.pair_P2[:, 0]).all()
    live = np.arange(40) < 10
    part = match_atoms(a, a, live_a_K=live)
    assert part.n_pairs == 10 and set(part.pair_P2[:, 0]) == set(range(10)) and part.mean == pytest.approx(1.0, abs=1e-6)
    assert match_atoms(a, a, live_a_K=np.zeros(40, bool)).mean is None


def test_the_random_floor_is_the_one_that_is_known_for_1024_atoms_in_512_dimensions():
    assert random_floor(1024, 1024, 512) == pytest.approx(0.137, abs=0.002)
    a, b = random_atoms(256, 64, 2), random_atoms(256, 64, 3)
    assert match_atoms(a, b).above_floor == pytest.approx(0, abs=0.01)


def test_activations_match_by_their_correlation():
    codes = np.maximum(np.random.default_rng(0).normal(size=(300, 10)), 0)
    order = np.random.default_rng(1).permutation(10)
    found = match_activations(codes, 2 * codes[:, order])
    assert found.mean == pytest.approx(1, abs=1e-5) and found.floor < 0.3
    assert match_activations(codes, np.zeros((300, 4))).mean is None
    value = best(np.corrcoef(codes.T, codes[::-1].T)[:10, 10:])[2].mean()
    assert match_activations(codes, codes[::-1]).mean == pytest.approx(value, abs=1e-5)


def test_principal_angles_are_zero_for_two_bases_of_a_plane_and_right_for_orthogonal_ones():
    plane = random_atoms(2, 6, 0)
    turned = np.array([[np.cos(1), np.sin(1)], [-np.sin(1), np.cos(1)]]) @ plane
    assert principal_angles(plane, turned, np.ones(2), np.ones(2), energy=1.0) == pytest.approx([0, 0], abs=1e-4)
    assert principal_angles(np.eye(6)[:2], np.eye(6)[3:5], np.ones(2), np.ones(2), energy=1.0) == pytest.approx([90, 90])
    assert len(principal_angles(plane, plane, np.zeros(2), np.ones(2))) == 0


@pytest.mark.slow
def test_eight_thousand_atoms_are_matched_within_half_a_minute():
    a, b = random_atoms(8192, 512, 0).astype(np.float32), random_atoms(8192, 512, 1).astype(np.float32)
    began = time.process_time()
    best(a @ b.T)
    assert time.process_time() - began < 30


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=8))
def test_front_and_hypervolume_by_counting_cells(points):
    value = np.array(points, float)
    front = pareto_front(value, (True, True, False))
    cost = value * [-1, -1, 1]
    for i in range(len(cost)):
        beaten = any((cost[j] <= cost[i]).all() and (cost[j] < cost[i]).any() for j in range(len(cost)))
        assert front[i] != beaten
    cells = {(a, b, c) for x, y, z in points for a in range(x) for b in range(y) for c in range(z, 7)}
    assert hypervolume(value, np.array([0, 0, 7]), (True, True, False)) == pytest.approx(len(cells))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="one width"):
        match_atoms(np.eye(3), np.eye(4))
    with pytest.raises(ValueError, match="same windows"):
        match_activations(np.eye(3), np.eye(4))
    with pytest.raises(ValueError, match="finite"):
        pareto_front(np.array([[np.nan, 1.0]]), (True, True))
    with pytest.raises(ValueError, match="one flag per axis"):
        pareto_front(np.ones((2, 2)), (True,))
