"""Laws of measuring: every image once, numbers as float64 has them, classes matched or refused."""

import contextlib
import functools
import io
import json
import os
import pathlib
import re
import shlex
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import (
  average_precision_score,
  balanced_accuracy_score,
  f1_score,
  log_loss,
  roc_auc_score,
)

import vit_jax
from tests.conftest import SIZE, drawn, forward, shapes, tiny
from tests.test_docs import blocks, coded, table
from tests.test_run import cache, whole
from vit_jax import __main__ as vit
from vit_jax import bundle, pipeline, predict, sharding, sources
from vit_jax.commands import evaluate
from vit_jax.evaluate import (
  accuracy,
  features,
  fewshot,
  inputs,
  knn,
  linear,
  loop,
  neighbours,
  results,
)
from vit_jax.sources import imagenet, labels, presets
from vit_jax.tasks import classify, measures

__all__ = ['cache', 'whole']

DOCUMENT = pathlib.Path(__file__).parents[1] / 'docs' / 'evaluation.md'
NAMES = ('ant', 'bee', 'cat', 'dog', 'elk')


@functools.cache
def model_of(classes=5, scores='softmax', names=None, seed=0):
  """A small model whose every parameter is drawn, and whose images are squashed."""
  model = tiny(num_classes=classes, depth=1)
  names = names or NAMES[:classes]
  params = drawn(shapes(model))
  if seed:
    params['head']['kernel'] = params['head']['kernel'] + seed
  options = bundle.Preprocess('resize', SIZE, (0.4, 0.5, 0.6), (0.3, 0.3, 0.3))
  return bundle.Bundle(model, params, names, options, 'ViT-Ti/16', scores)


def picture(index):
  return np.random.default_rng(index).integers(0, 256, (*SIZE, 3)).astype(np.uint8)


def split_of(count, *, classes=NAMES, bad=(), label=None, name='made', split='test'):
  """A split of `count` images, of which some cannot be read; `label` gives that of an index."""
  label = label or (lambda index: index % len(classes))
  records = [
    {'image': b'' if index in bad else picture(index), 'label': np.asarray(label(index), np.int32)}
    for index in range(count)
  ]
  return inputs.Split(name, split, sources.Source(records, tuple(classes)))


def logits_of(result, count):
  """(count, K) of the first pictures."""
  images = np.stack([picture(index) for index in range(count)]).astype(np.float64)
  options = result.preprocess
  normal = (images / 255 - np.asarray(options.mean)) / np.asarray(options.std)
  logits, _ = forward(result.model, result.params, np.float32(normal))
  return np.asarray(logits, np.float64)


def softmax(logits):
  shifted = np.exp(logits - logits.max(1, keepdims=True))
  return shifted / shifted.sum(1, keepdims=True)


def quiet(_):
  pass


def on_devices(count, monkeypatch):
  """Has meshes made of so many of the eight devices."""
  made = functools.partial(sharding.make_mesh, devices=jax.devices()[:count])
  monkeypatch.setattr(inputs.sharding, 'make_mesh', made)


# Accuracy


def expected_calibration(confidence, right):
  """By the definition of Guo et al., one image after another."""
  error = 0.0
  for index in range(15):
    inside = (confidence > index / 15) & (confidence <= (index + 1) / 15)
    if inside.any():
      error += abs(confidence[inside].mean() - right[inside].mean()) * inside.mean()
  return error


@pytest.mark.parametrize('devices', [1, 8])
@pytest.mark.parametrize('count', [1, 8, 13, 50])
def test_measures_are_those_of_float64_over_every_image_once(count, devices, monkeypatch):
  on_devices(devices, monkeypatch)
  result = model_of()
  bad, unlabelled = {2, 11}, {5, 12}
  data = split_of(count, bad=bad, label=lambda i: -1 if i in unlabelled else (3 * i) % 5)
  values = accuracy.evaluate_model(result, data, batch_size=2, say=quiet)
  readable = [i for i in range(count) if i not in bad | unlabelled]
  truth, logits = np.array([(3 * i) % 5 for i in readable]), logits_of(result, 50)[readable]
  scores, guess = softmax(logits), logits.argmax(1)
  assert values['count'] == len(readable)
  assert values['bad_images'] == len([i for i in bad if i < count])
  assert values['unlabelled'] == len([i for i in unlabelled if i < count])
  assert values['accuracy'] == np.mean(guess == truth)
  assert 'top5' not in values
  loss = -np.log(scores[np.arange(len(readable)), truth]).mean()
  assert values['loss'] == pytest.approx(loss, rel=1e-5)
  error = expected_calibration(scores.max(1), guess == truth)
  assert values['calibration_error'] == pytest.approx(error, abs=1e-5)
  assert sum(row['count'] for row in values['calibration']) == len(readable)
  confusion = np.zeros((5, 5), int)
  np.add.at(confusion, (truth, guess), 1)
  assert values['confusion'] == confusion.tolist()
  for place, row in enumerate(values['classes']):
    assert row['count'] == confusion[place].sum()
    for total, key in ((confusion[:, place].sum(), 'precision'), (row['count'], 'recall')):
      want = confusion[place, place] / total if total else None
      assert row[key] == (None if want is None else pytest.approx(want, abs=1e-7))
  off = sum(pair['count'] for pair in values['confused'])
  assert off == confusion.sum() - np.trace(confusion)


@pytest.mark.parametrize('devices', [1, 8])
def test_the_most_confident_mistakes_are_told_with_their_images(devices, monkeypatch):
  on_devices(devices, monkeypatch)
  bad, unlabelled = {2, 11}, {5, 12}
  data = split_of(60, bad=bad, label=lambda i: -1 if i in unlabelled else (3 * i) % 5)
  values = accuracy.evaluate_model(model_of(), data, batch_size=4, say=quiet)
  result, images = values['mistakes'], values['images']
  scores = softmax(logits_of(model_of(), 60))
  guess = scores.argmax(1)
  wrong = [i for i in range(60) if i not in bad | unlabelled and guess[i] != (3 * i) % 5]
  surest = sorted(wrong, key=lambda i: -scores[i].max())[: classify.MISTAKES]
  assert len(wrong) > classify.MISTAKES and [row['index'] for row in result] == surest
  for row, index in zip(result, surest):
    assert row['image'] == data.source.describe(index)
    assert (row['label'], row['guess']) == (NAMES[(3 * index) % 5], NAMES[guess[index]])
    assert row['confidence'] == pytest.approx(scores[index].max(), abs=1e-6)
  scored = [i for i in range(60) if i not in bad | unlabelled]
  truth = [(3 * i) % 5 for i in scored]
  assert (images['index'], images['label']) == (scored, truth)
  assert images['guess'] == guess[scored].tolist()
  assert images['right'] == (guess[scored] == truth).astype(int).tolist()
  np.testing.assert_allclose(images['confidence'], scores[scored].max(1), atol=2e-6)
  np.testing.assert_allclose(images['loss'], -np.log(scores[scored, truth]), rtol=1e-4, atol=1e-5)
  right = split_of(20, label=lambda i: int(guess[i]))
  assert accuracy.evaluate_model(model_of(), right)['mistakes'] == []


def test_of_more_images_than_are_kept_so_many_evenly_over_all_are_the_same_for_each_model(
  monkeypatch,
):
  monkeypatch.setattr(results, 'LARGEST_IMAGES', 5)
  rows = {name: np.zeros(12) for name in results.COLUMNS if name != 'index'}
  rows['right'][3] = -1  # not scored: the others are 0, 1, 2, 4, ..., 11
  columns = results.image_columns(rows, 1)
  assert columns['index'] == [0, 2, 6, 9, 11]
  assert {len(column) for column in columns.values()} == {5}


def test_an_image_that_lies_among_those_of_another_class_has_that_class_as_its_neighbour():
  directions = np.eye(3)[[0] * 8 + [1] * 8] + np.random.default_rng(0).normal(0, 0.05, (16, 3))
  labels = np.array([0] * 7 + [1] * 9)  # image 7 lies among the first, and is labelled 1
  columns = neighbours.columns(directions, labels, 2)
  assert columns['neighbour'].tolist() == [0] * 8 + [1] * 8
  assert columns['typical'][7] == columns['typical'].min() < 0.3 < 0.9 < columns['typical'][0]


def test_top_five_counts_a_label_among_the_first_five():
  names = tuple(f'class {k}' for k in range(7))
  result = model_of(7, names=names)
  values = accuracy.evaluate_model(result, split_of(40, classes=names))
  order = np.argsort(-logits_of(result, 40), axis=1)[:, :5]
  assert values['top5'] == np.mean([i % 7 in order[i] for i in range(40)]) < 1


@pytest.mark.parametrize('count', [3, 5])
def test_of_so_few_classes_that_the_first_five_are_all_there_is_no_top_five(count):
  values = accuracy.evaluate_model(model_of(count), split_of(9, classes=NAMES[:count]))
  ranks = classify.more_ranks(count, multi_label=False, sigmoid=False)
  assert not any(map(results.is_top, [*values, *ranks]))
  assert 'top' not in accuracy.lines(values)[0]
  older = values | {f'top{count}': 1.0}  # as earlier versions had it
  assert results.numbers(older) == results.numbers(values)
  assert accuracy.lines(older) == accuracy.lines(values)


def test_a_bin_holds_its_upper_edge_and_no_weight_is_lost():
  bins = np.zeros((15, 3))
  bins[14] = (4, 3.9, 1)
  bins[0] = (1, 0.05, 1)
  result = classify.calibration(bins)
  assert result['calibration_error'] == pytest.approx((2.9 + 0.95) / 5)
  assert (
    result['calibration'][14]['accuracy'] == 0.25 and result['calibration'][7]['accuracy'] is None
  )


def several(index):
  """Two labels, one, or none."""
  return [(index % 5, (index + 2) % 5, -1), (index % 5, -1, -1), (-1, -1, -1)][index % 3]


def test_of_several_labels_any_is_right_and_a_softmax_skips_images_without_one():
  result = model_of()
  values = accuracy.evaluate_model(result, split_of(31, label=several))
  readable = [i for i in range(31) if i % 3 < 2]
  guess = logits_of(result, 31).argmax(1)
  right = [guess[i] in [label for label in several(i) if label >= 0] for i in readable]
  assert (values['count'], values['unlabelled']) == (len(readable), 10)
  assert values['accuracy'] == np.mean(right)
  assert values['confusion'] is None and values['confused'] == []
  scores = softmax(logits_of(result, 31))
  shares = [-np.mean([np.log(scores[i, k]) for k in several(i) if k >= 0]) for i in readable]
  assert values['loss'] == pytest.approx(np.mean(shares), rel=1e-5)
  assert 'mean_average_precision' not in values


def several_or_unknown(index):
  return (-2, -2, -2) if index % 7 == 5 else several(index)


def test_a_sigmoid_scores_images_of_no_class_as_negatives_and_skips_unknown_ones():
  result = model_of(scores='sigmoid')
  values = accuracy.evaluate_model(result, split_of(31, label=several_or_unknown))
  scored = [i for i in range(31) if i % 7 != 5]
  assert (values['count'], values['unlabelled']) == (len(scored), 31 - len(scored))
  logits = logits_of(result, 31)[scored]
  truth = np.array([[k in several(i) for k in range(5)] for i in scored])
  guess = logits > 0
  wanted = {
    'mean_average_precision': average_precision_score(truth, logits, average='macro'),
    'auroc': roc_auc_score(truth, logits, average='macro'),
    'f1_micro': f1_score(truth, guess, average='micro'),
    'f1_macro': f1_score(truth, guess, average='macro'),
    'f1_weighted': f1_score(truth, guess, average='weighted'),
    'balanced_accuracy': np.mean([*map(balanced_accuracy_score, truth.T, guess.T)]),
  }
  assert {name: values[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)
  assert wanted.keys() <= classify.more_ranks(5, multi_label=True, sigmoid=True).keys()
  for place, row in enumerate(values['classes']):
    hits = (guess[:, place] & truth[:, place]).sum()
    assert row['recall'] == pytest.approx(hits / truth[:, place].sum())
    assert row['precision'] == pytest.approx(hits / guess[:, place].sum())
  per_class = np.where(truth, np.log1p(np.exp(-logits)), np.log1p(np.exp(logits)))
  assert values['loss'] == pytest.approx(per_class.sum(1).mean(), rel=1e-5)
  top = truth[np.arange(len(truth)), logits.argmax(1)]
  right = np.where(truth.any(1), top, ~guess.any(1))
  assert values['accuracy'] == pytest.approx(right.mean())


@pytest.mark.parametrize('scores', ['softmax', 'sigmoid'])
def test_measures_of_one_label_each_are_those_of_scikit_learn(scores):
  result, count = model_of(scores=scores), 40
  values = accuracy.evaluate_model(result, split_of(count, label=lambda i: [0, 0, 0, 2, 3][i % 5]))
  truth, logits = np.array([0, 0, 0, 2, 3] * 8), logits_of(result, count)
  guess, present = logits.argmax(1), [0, 2, 3]
  ranked = softmax(logits) if scores == 'softmax' else logits
  wanted = {
    'f1_micro': f1_score(truth, guess, average='micro'),
    'f1_macro': f1_score(truth, guess, average='macro'),
    'f1_weighted': f1_score(truth, guess, average='weighted'),
    'balanced_accuracy': np.mean([(guess[truth == k] == k).mean() for k in present]),
    'auroc': np.mean([roc_auc_score(truth == k, ranked[:, k]) for k in present]),
  }
  assert {name: values[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)
  ranks = classify.more_ranks(5, multi_label=False, sigmoid=scores == 'sigmoid')
  assert wanted.keys() <= ranks.keys() <= values.keys()  # no mean average precision
  if scores == 'softmax':
    assert values['loss'] == pytest.approx(log_loss(truth, ranked, labels=range(5)), rel=1e-5)


def test_the_area_under_the_curve_counts_equal_scores_by_half():
  scores, truth = np.round(np.random.default_rng(0).normal(size=200)), np.arange(200) % 3 == 0
  assert measures.auroc(scores, truth) == pytest.approx(roc_auc_score(truth, scores))
  assert np.isnan(measures.auroc(scores, truth | True))


@pytest.mark.parametrize('truth', [{'label': np.arange(4) % 2}, {'targets': np.eye(4, 2)}])
def test_scores_that_are_not_finite_have_no_ranks(truth):
  logits = np.zeros((4, 2), np.float32)
  for bad, is_measured in ((0, True), (np.nan, False), (np.inf, False)):
    logits[1, 0] = bad
    values = measures.from_ranks(truth | {'logits': logits}, np.ones(4, bool), sigmoid=True)
    assert [value is not None for value in values.values()] == [is_measured] * len(values)


def test_more_scores_than_are_held_are_not_measured_by_rank(monkeypatch):
  monkeypatch.setattr(loop, 'LARGEST', 8 * 5)
  monkeypatch.setattr(inputs, 'BATCH', 1)
  values = accuracy.evaluate_model(
    model_of(scores='sigmoid'), split_of(31, label=several), batch_size=1
  )
  assert values['auroc'] is values['mean_average_precision'] is None
  assert 'AUROC not measured  mean average precision not measured' in ' '.join(
    accuracy.lines(values)
  )


def test_labels_out_of_a_restricted_scope_make_an_image_unknown_and_no_negative():
  targets = np.array([0, -1, 1])
  rows = np.array([[0, 1], [1, -1], [-1, -1], [-2, -2]])
  assert classify.rematched(rows, targets).tolist() == [[0, -1], [-2, -2], [-1, -1], [-2, -2]]
  assert classify.rematched(np.array([2, 1, -1]), targets).tolist() == [1, -1, -1]


def test_a_set_of_many_classes_has_no_confusion_matrix_but_its_largest_entries(monkeypatch):
  monkeypatch.setattr(classify, 'LARGEST_CONFUSION', 4)
  values = accuracy.evaluate_model(model_of(), split_of(20))
  assert values['confusion'] is None and values['confused']


def test_nothing_to_score_is_no_score():
  with pytest.raises(pipeline.DataError, match='nothing to evaluate'):
    accuracy.evaluate_model(model_of(), split_of(6, label=lambda _: -1))


def test_a_model_without_a_head_is_told_what_measures_it():
  headless = bundle.Bundle(tiny(num_classes=0), {}, (), model_of().preprocess, 'ViT-Ti/16')
  with pytest.raises(ValueError, match='no head here: knn, fewshot and linear'):
    accuracy.evaluate_model(headless, split_of(6))


def test_preprocessing_of_another_size_is_refused_and_of_the_same_is_used():
  with pytest.raises(ValueError, match='gives 4x4 pixels; the model takes 8x12'):
    accuracy.evaluate_model(model_of(), split_of(6), preprocess='resize(4)')
  turned = accuracy.evaluate_model(model_of(), split_of(20), preprocess='resize | grayscale(1)')
  assert turned['loss'] != accuracy.evaluate_model(model_of(), split_of(20))['loss']


# Label maps

WNIDS = imagenet.synsets()
WORDS = tuple(words for _, _, words in imagenet.table())
NUMBERS = tuple(map(str, range(1000)))


def columns_of(theirs, ours, **options):
  matched = labels.match(theirs, ours, **options)
  return [None if place < 0 else int(matched.columns[place]) for place in matched.targets], matched


TWELVE = tuple(map(str, range(12)))
AS_TEXT = tuple(sorted(TWELVE))  # as folders sort: 0 1 10 11 2
LETTERS = tuple('abcdefghijkl')


@pytest.mark.parametrize(
  'theirs, ours, columns, options',
  [
    (NAMES, NAMES, [0, 1, 2, 3, 4], 'the same names'),
    (NAMES[::-1], NAMES, [4, 3, 2, 1, 0], 'by name'),
    (
      ('dog', 'bee'),
      NAMES,
      [3, 1],
      "by name; the data lacks 3 of the model's 5: ant, cat, elk; --restrict leaves",
    ),
    (('caf\u00e9', 'Tea'), ('tea', 'cafe\u0301'), [1, 0], 'without regard to case'),
    (('cat', 'CAT'), ('CAT', 'cat'), [1, 0], 'by name'),
    (TWELVE, AS_TEXT, [AS_TEXT.index(name) for name in TWELVE], 'by name'),
    (('2', '1'), ('0', '1', '2'), [2, 1], 'by name'),
    (('0',), TWELVE, [0], "by name; the data lacks 11 of the model's 12: 1, 2, 3 and 8 more"),
    (('01', '10'), ('1', '2', '10'), [0, 2], 'leading zeros'),
    (('7',), ('007', '7'), [1], 'by name'),
    (AS_TEXT, LETTERS, [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9], 'by their order'),
    (LETTERS, AS_TEXT, [AS_TEXT.index(name) for name in TWELVE], 'by their order'),
    (NAMES, NUMBERS[:5], [0, 1, 2, 3, 4], 'by their order'),
    (NUMBERS[:5], NAMES, [0, 1, 2, 3, 4], 'by their order'),
    (WNIDS, NUMBERS, list(range(1000)), 'by their order'),
    (WNIDS, WORDS, list(range(1000)), "by ImageNet's order"),
    (WORDS, WNIDS, list(range(1000)), "by ImageNet's order"),
    (WNIDS[7:3:-1], WORDS, [7, 6, 5, 4], "by synset; the data lacks 996 of the model's 1,000"),
    (WNIDS[7:3:-1], NUMBERS, [7, 6, 5, 4], "by synset; the data lacks 996 of the model's 1,000"),
    (('tench', 'Tiger_Shark'), WORDS, [0, 3], "by WordNet's words; the data lacks 998 of"),
    (('tiger shark', 'goldfish'), WNIDS, [3, 1], "by WordNet's words"),
  ],
)
def test_classes_are_matched(theirs, ours, columns, options):
  result, matched = columns_of(theirs, ours)
  assert result == columns and options in matched.method
  assert matched.columns.tolist() == list(range(len(ours)))


@pytest.mark.parametrize(
  'theirs, ours, said',
  [
    (('fox',), NAMES, 'the data has 1 class and the model 5; not among the model.s: fox;'),
    (('dog', 'fox'), NAMES, 'the data has 2 classes and the model 5; not among the model.s: fox;'),
    (LETTERS, NAMES, "not among the model's: a, b, c and 9 more; the model's: ant, bee, cat and 2"),
    (('1', '2', '3'), ('0', '1', '2'), "not among the model's: 3; the model's: 0, 1, 2;"),
    (('x', 'y', 'z'), ('1', '2', '3'), "not among the model's: x, y, z; the model's: 1, 2, 3;"),
    (('007', '7'), ('07', '1'), "not among the model's: 007, 7;"),
    (NUMBERS[:10], NUMBERS, 'the model 1,000, which have numbers for names'),
    (('ant', 'bee'), ('ant', 'bee', 'bee'), 'some have the same name'),
    (('crane', 'tench'), WORDS, "not among the model's: crane;"),  # a bird, and a machine
    ((), NAMES, '0 of the classes'),
  ],
)
def test_classes_that_do_not_match_are_refused_with_the_way_out(theirs, ours, said):
  with pytest.raises(ValueError, match=said) as error:
    labels.match(theirs, ours)
  assert '--label_map' in str(error.value) or not theirs
  assert '\n' not in str(error.value)


def test_classes_that_both_have_are_scored_alone_where_that_is_asked_for():
  matched = labels.match(('fox', 'dog', 'bee'), NAMES, restrict=True)
  assert (matched.columns.tolist(), matched.targets.tolist()) == ([1, 3], [-1, 1, 0])
  assert matched.method == 'by name, restricted to 2 of 5; images of fox are not scored'


def test_a_class_without_images_need_be_none_of_the_models():
  matched = labels.match(('0', '1', '2', '3'), ('1', '2', '3'), present={'1', '2', '3'})
  assert matched.targets.tolist() == [-1, 0, 1, 2] and matched.method == 'by name'


@pytest.mark.parametrize(
  'name, text',
  [
    ('map.json', '{"rose": "dog", "tulip": 1, "weed": null, "reed": 1}'),
    ('map.csv', 'data,model\nrose,dog\ntulip,1\nweed,\nreed,bee\n'),
    (
      'map.csv',
      '\ufeffData;Model;note\r\n"rose";dog;\r\ntulip; "1";\r\nweed;nan;\r\nreed;bee;\r\n',
    ),
    ('map.tsv', 'model\tdata\ndog\trose\n1\ttulip\n\tweed\nbee\treed\n'),
    ('map.json', '\ufeff{"rose": "dog", "tulip": 1, "weed": "nan", "reed": 1}'),
  ],
)
def test_a_label_map_decides(name, text, tmp_path):
  (tmp_path / name).write_text(text)
  result, matched = columns_of(('weed', 'rose', 'tulip', 'reed'), NAMES, label_map=tmp_path / name)
  assert result == [None, 3, 1, 1]
  assert matched.names == NAMES and "lacks 3 of the model's 5" in matched.method
  alone, restricted = columns_of(
    ('weed', 'rose', 'tulip', 'reed'), NAMES, label_map=tmp_path / name, restrict=True
  )
  assert alone == result
  assert restricted.names == ('bee', 'dog')  # two classes are bees


def test_a_number_in_a_label_map_is_a_name_where_classes_are_called_by_numbers(tmp_path):
  (tmp_path / 'map.json').write_text('{"rose": 10, "tulip": "2"}')
  assert columns_of(('rose', 'tulip'), AS_TEXT, label_map=tmp_path / 'map.json')[0] == [2, 4]


@pytest.mark.parametrize(
  'name, text, said',
  [
    ('map.json', '{"rose": "dog"}', 'lacks tulip, classes of the data'),
    ('map.json', '{"rose": "dgo", "tulip": 1}', "'dgo' is no class of the model; did you mean dog"),
    ('map.json', '{"rose": 5, "tulip": 1}', '5 is no class of the model'),
    ('map.json', '{"rose": true, "tulip": 1}', 'True is no class of the model'),
    ('map.json', '{"roes": 0, "tulip": 1}', "'roes' is no class of the data; did you mean rose"),
    ('map.json', '[1, 2]', 'no JSON object'),
    ('map.json', '{', 'damaged'),
    ('map.json', '{"rose": null, "tulip": null}', '0 of the classes'),
    ('map.csv', 'rose,1\ntulip,2\n', 'not the columns data and model'),
    ('map.csv', 'data,model\nrose,1\ntulip\n', 'line 3: 1 fields instead of 2'),
    ('map.csv', 'data,model\nrose,1\nrose,2\n', "line 3: 'rose' is '2' here and '1' before"),
    ('map.json', '{"rose": 1, "rose": 2}', "'rose' comes twice"),
    ('none.json', None, 'no such file'),
  ],
)
def test_a_label_map_that_cannot_be_is_told_in_a_line(name, text, said, tmp_path):
  if text is not None:
    (tmp_path / name).write_text(text)
  with pytest.raises((ValueError, FileNotFoundError), match=said) as error:
    labels.match(('rose', 'tulip'), NAMES, label_map=tmp_path / name)
  assert '\n' not in str(error.value)


def test_the_classes_of_imagenet_are_those_of_tfds_and_words_of_other_packages_are_known():
  common = pytest.importorskip('tensorflow_datasets.datasets.imagenet2012.imagenet_common')
  from tensorflow_datasets.datasets.siscore import labels as siscore

  assert tuple(pathlib.Path(common.label_names_file()).read_text().split()) == WNIDS
  assert imagenet.is_complete(siscore.IMAGENET_LABELS_LIST)
  assert not imagenet.is_complete(NUMBERS) and not imagenet.is_complete(WORDS[::-1])


def test_imagenet_a_and_r_use_200_classes_each():
  a, r = imagenet.subset('imagenet_a'), imagenet.subset('tfds:imagenet_r:0.2.0?data_dir=x')
  assert imagenet.subset('imagenet_a?data_dir=/x') == a
  assert imagenet.subset('imagenet_r?data_dir=/x') == r
  assert len(a) == len(r) == 200 and len(a & r) == 86 and a | r <= set(WNIDS)
  assert [imagenet.subset(name) for name in ('imagenet2012', 'folder:imagenet_a', 'digits')] == [
    None
  ] * 3
  assert {'imagenet_a', 'imagenet_r'} <= set(presets.PRESETS)
  assert {WNIDS[place] for place in (6, 11, 13)} <= a and {WNIDS[place] for place in (1, 2, 4)} <= r


@pytest.mark.parametrize('names', [NUMBERS, WORDS])
def test_on_imagenet_a_a_model_is_asked_for_its_200_classes_alone(names):
  result = model_of(1000, names=names)
  used = [place for place, name in enumerate(WNIDS) if name in imagenet.subset('imagenet_a')]
  data = split_of(24, classes=WNIDS, label=lambda i: used[7 * i], name='imagenet_a')
  values = accuracy.evaluate_model(result, data)
  logits = logits_of(result, 24)[:, used]
  truth = 7 * np.arange(24)
  assert values['count'] == 24 and len(values['confusion']) == 200
  assert values['accuracy'] == np.mean(logits.argmax(1) == truth)
  loss = -np.log(softmax(logits)[np.arange(24), truth]).mean()
  assert values['loss'] == pytest.approx(loss, rel=1e-5)
  assert values['matched'].endswith('restricted to 200 of 1000')
  assert [row['name'] for row in values['classes']] == [WNIDS[place] for place in used]


def test_numbers_are_names_in_whatever_order_either_side_has_them():
  result = model_of(12, names=AS_TEXT)
  guess = logits_of(result, 40).argmax(1)
  data = split_of(40, classes=TWELVE, label=lambda i: int(AS_TEXT[guess[i]]))
  assert accuracy.evaluate_model(result, data)['accuracy'] == 1.0


def test_a_class_of_which_no_image_can_be_read_from_memory_need_be_none_of_the_models():
  """As of TFDS, whose labels are read for it; with an image it is refused."""
  data = split_of(20, classes=(*NAMES, 'fox'), label=lambda i: i % 5)
  assert accuracy.evaluate_model(model_of(), data)['count'] == 20
  with pytest.raises(ValueError, match="not among the model's: fox"):
    accuracy.evaluate_model(model_of(), split_of(20, classes=(*NAMES, 'fox')))


def test_a_class_that_the_data_lacks_can_still_be_predicted():
  result = model_of()
  guess = logits_of(result, 60).argmax(1)
  two = [int(label) for label in np.argsort(np.bincount(guess, minlength=5))[:2]]
  names = [NAMES[label] for label in two]
  data = split_of(60, classes=names)
  truth = np.array(two)[np.arange(60) % 2]
  values = accuracy.evaluate_model(result, data)
  assert values['count'] == 60 and values['accuracy'] == np.mean(guess == truth) < 0.5
  assert [row['count'] for row in values['classes']] == [30 * (k in two) for k in range(5)]
  restricted = accuracy.evaluate_model(result, data, restrict=True)
  among = np.array(two)[logits_of(result, 60)[:, two].argmax(1)]
  assert restricted['accuracy'] == np.mean(among == truth) > values['accuracy']


def test_a_data_set_without_a_split_of_its_own_is_measured_whole(whole, photos, tmp_path, capsys):
  np.savez(tmp_path / 'x.npz', x=np.stack([picture(i) for i in range(24)]), y=np.arange(24) % 12)
  (tmp_path / 'rose').mkdir()
  (photos / 'rose').rename(tmp_path / 'rose' / 'rose')
  bundle.write(tmp_path / 'model', model_of(2, names=('rose', 'tulip')))
  for name, model, count in (('folder:photos', 'model', 10), ('folder:rose', 'model', 10)):
    words = ['evaluate', tmp_path / model, '--on', name.replace(':', f':{tmp_path}/')]
    text = output_of(words, capsys)
    assert f'split all, {count} images' in text and 'no test or validation split of its own' in text
  words = ['features', whole, '--on', f'arrays:{tmp_path}/x.npz', '--out', tmp_path / 'f.npz']
  assert vit.main(list(map(str, words))) == 0
  streams = capsys.readouterr()
  assert '24 x 16 features' in streams.out and 'all of its images are measured' in streams.err
  assert inputs.test_split(f'arrays:{tmp_path}/x.npz') == 'validation'  # for probes, a run's own


@pytest.mark.parametrize('command', ['evaluate', 'features'])
def test_what_a_data_set_holds_and_is_not_read_is_said(photos, tmp_path, command, capsys):
  (photos / 'rose' / 'phone.heif2').write_bytes(b'0')
  shutil.copytree(photos / 'tulip', photos / 'Tulip')
  bundle.write(tmp_path / 'model', model_of(3, names=('Tulip', 'rose', 'tulip')))
  words = [command, tmp_path / 'model', '--on', f'folder:{photos}']
  assert (
    vit.main([*map(str, words), *['--out', f'{tmp_path}/f.npz'] * (command == 'features')]) == 0
  )
  lines = ''.join(capsys.readouterr()).splitlines()
  assert 'passed over: 1 .heif2 (no image format that is read)' in lines
  alone = 'case, Unicode form or leading zeros alone'
  assert f"classes that differ in {alone}: 'Tulip' and 'tulip'" in lines


# Features


@pytest.mark.parametrize('devices', [1, 8])
@pytest.mark.parametrize('count', [1, 13, 24])
def test_features_are_of_every_image_once_in_order(count, devices, monkeypatch):
  on_devices(devices, monkeypatch)
  data = split_of(count, bad={3}, label=lambda i: -1 if i == 5 else i % 5)
  output = []
  made = features.extract(model_of(), data, batch_size=2, say=output.append)
  readable = [i for i in range(count) if i != 3]
  assert made.indices.tolist() == readable and made.bad_images == len(output) == int(count > 3)
  assert made.labels.tolist() == [-1 if i == 5 else i % 5 for i in readable]
  result = predict.Run(**vars(model_of()))
  np.testing.assert_allclose(
    made.values, result.features([picture(i) for i in readable]), atol=1e-5
  )
  assert made.labelled().indices.tolist() == [i for i in readable if i != 5]


def test_kept_features_are_found_again_and_never_those_of_another_split(tmp_path, monkeypatch):
  computed = []
  placed_batches = inputs.placed_batches

  def counted(split, *args, **options):
    computed.append(split.split)
    return placed_batches(split, *args, **options)

  monkeypatch.setattr(inputs, 'placed_batches', counted)
  take = functools.partial(features.extract, cache=tmp_path / 'kept', say=quiet)
  data = split_of(20, bad={4})
  first = take(model_of(), data)
  again = take(model_of(), data)
  assert computed == ['test+0'] and again.bad_images == first.bad_images == 1
  for name in ('values', 'labels', 'indices'):
    np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
  others = [
    (model_of(), split_of(20, bad={4}, split='test[:50%]'), {}),
    (model_of(), split_of(20, bad={4}, name='other'), {}),
    (model_of(), split_of(21, bad={4}), {}),
    (model_of(), split_of(20, bad={4}, classes=NAMES[::-1]), {}),
    (model_of(seed=1), data, {}),
    (model_of(), data, {'preprocess': 'resize | grayscale(1)'}),
  ]
  for result, where, options in others:
    take(result, where, **options)
  assert len(computed) == 1 + len(others)
  for file in (tmp_path / 'kept').iterdir():
    file.write_bytes(file.read_bytes()[:200])
  take(model_of(), data)
  assert len(computed) == 2 + len(others)


def test_an_interrupted_extraction_resumes_and_gives_what_one_without_a_cache_gives(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(features, 'PART', 6)
  run, data, done = model_of(), split_of(20, bad={4}), []
  take = functools.partial(features.extract, run, cache=tmp_path, say=quiet, batch_size=1)

  def interrupted(file, part):
    if part.split == 'test+12':
      raise KeyboardInterrupt
    return None

  with monkeypatch.context() as patch:
    patch.setattr(features, 'remembered', interrupted)
    with pytest.raises(KeyboardInterrupt):
      take(data)
  written = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
  result = take(data, advance=done.append)
  assert len(written) == 2 and len([*tmp_path.iterdir()]) == 4 and sum(done) == 20
  assert written.items() <= {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}.items()
  whole = features.extract(run, data, say=quiet, batch_size=1)
  for name in ('labels', 'indices', 'bad_images', 'split', 'source'):
    np.testing.assert_array_equal(getattr(result, name), getattr(whole, name))
  np.testing.assert_allclose(result.values, whole.values, atol=1e-6)


def test_features_of_a_file_that_has_changed_are_computed_anew(tmp_path):
  paths = [str(tmp_path / name) for name in ('a.png', 'b.png')]
  for path in paths:
    Image.fromarray(picture(1)).save(path)
  take = functools.partial(features.extract, model_of(), cache=tmp_path / 'kept')
  first = take(inputs.image_split(paths)).values
  np.testing.assert_array_equal(first[0], first[1])
  Image.fromarray(picture(2)).save(paths[1])
  os.utime(paths[1], ns=(0, 0))
  second = take(inputs.image_split(paths)).values
  np.testing.assert_array_equal(second[0], first[0])
  assert not np.allclose(second[1], first[1])


def test_a_model_of_patches_has_no_features_of_an_image():
  result = model_of()
  patches = bundle.Bundle(
    tiny(pool='none', depth=1), result.params, NAMES, result.preprocess, 'ViT-Ti/16'
  )
  with pytest.raises(ValueError, match='only of its patches'):
    features.extract(patches, split_of(4))


# Probes


def clusters(count, *, classes=4, width=6, noise=1.0, seed=0, split='train'):
  """Features of as many images of each class, round centres that depend on the class alone."""
  rng = np.random.default_rng(seed)
  labels = rng.permutation(np.arange(count) % classes).astype(np.int32)
  centres = np.random.default_rng(99).standard_normal((classes, width))
  values = centres[labels] + noise * rng.standard_normal((count, width)) + 2
  return features.Features(
    np.float32(values), labels, np.arange(count), tuple('abcdefgh'[:classes]), 'made', split
  )


def test_features_that_are_not_finite_are_not_probed():
  made = clusters(8)
  made.values[3, 2] = np.nan
  for measure in (
    lambda: knn.measure(made, made, ks=[1]),
    lambda: fewshot.measure(made, made, shots=[1]),
    lambda: linear.measure(made, made, made),
  ):
    with pytest.raises(ValueError, match='features of made that are not finite'):
      measure()


def test_neighbours_vote_as_in_float64(monkeypatch):
  monkeypatch.setattr(neighbours, 'BLOCK', 16)
  monkeypatch.setattr(neighbours, 'ROWS', 2)
  train, test = clusters(53), clusters(37, seed=1, split='test')
  ks = (1, 5, 20, 53)
  rows = knn.measure(train, test, ks=ks)
  a, b = (
    v / np.linalg.norm(v, axis=1, keepdims=True)
    for v in (np.float64(test.values), np.float64(train.values))
  )
  similarity = a @ b.T
  for k, row in zip(ks, rows):
    nearest = np.argsort(-similarity, axis=1)[:, :k]
    votes = np.zeros((37, 4))
    for i in range(37):
      for j in nearest[i]:
        votes[i, train.labels[j]] += np.exp(similarity[i, j] / 0.07)
    assert row == {
      'k': k,
      'accuracy': np.mean(votes.argmax(1) == test.labels),
      'train_count': 53,
      'count': 37,
    }
  result = neighbours.nearest(train.values, test.values, k=5)
  np.testing.assert_array_equal(result.index, np.argsort(-similarity, axis=1)[:, :5])


@pytest.mark.parametrize('devices', [1, 8])
def test_no_image_is_its_own_neighbour_and_the_others_are_those_of_brute_force(
  devices, monkeypatch
):
  monkeypatch.setattr(jax, 'local_devices', lambda: jax.devices()[:devices])
  monkeypatch.setattr(neighbours, 'BLOCK', 16)
  monkeypatch.setattr(neighbours, 'ROWS', 2)
  values, done = clusters(53).values, []
  with jax.transfer_guard('disallow'):  # as in the loop of training
    result = neighbours.nearest_others(values, k=5, advance=done.append)
  directions = values / np.linalg.norm(values, axis=1, keepdims=True)
  cosines = np.float64(directions) @ directions.T
  np.fill_diagonal(cosines, -np.inf)
  np.testing.assert_array_equal(result.index, np.argsort(-cosines, axis=1)[:, :5])
  np.testing.assert_allclose(result.similarity, -np.sort(-cosines, axis=1)[:, :5], atol=1e-6)
  assert sum(done) == 53
  few = neighbours.nearest_others(values[:3], k=5)
  assert np.sort(few.index, axis=1).tolist() == [[1, 2], [0, 2], [0, 1]]


@pytest.mark.parametrize('k', [0, -1, 54])
def test_more_neighbours_than_there_are_is_refused(k):
  with pytest.raises(ValueError, match=f"k is {k}, must be 1 to 53, the images of split 'train'"):
    knn.measure(clusters(53), clusters(7), ks=(1, k))


@pytest.mark.parametrize('count, width', [(40, 6), (5, 6), (7, 6), (12, 30)])
def test_ridge_regression_is_the_solution_of_its_equations(count, width):
  train = clusters(count, width=width)
  result = fewshot.fit(train.values, train.labels, 4, l2=fewshot.L2)
  values = np.float64(train.values)
  x = (values - values.mean(0)) / (values.std(0) + 1e-5)
  x = np.hstack([x, np.full((count, 1), 100.0)])
  y = 2.0 * (train.labels[:, None] == np.arange(4)) - 1
  solved = np.linalg.solve(x.T @ x + 2.0**10 * np.eye(width + 1), x.T @ y)
  np.testing.assert_allclose(result['weights'], solved, atol=1e-5)
  test = clusters(30, width=width, seed=1)
  new = (np.float64(test.values) - values.mean(0)) / (values.std(0) + 1e-5)
  guesses = (np.hstack([new, np.full((30, 1), 100.0)]) @ solved).argmax(1)
  np.testing.assert_array_equal(fewshot.predict(result, test.values), guesses)


def test_shots_are_chosen_by_seed_class_after_class():
  train, test = clusters(80), clusters(41, seed=1)
  rows = fewshot.measure(train, test, shots=(1, 5), seeds=(0, 1, 2))
  for row in rows:
    result = []
    for seed in (0, 1, 2):
      rng = np.random.default_rng(seed)
      chosen = np.concatenate(
        [rng.permutation(np.where(train.labels == k)[0])[: row['shots']] for k in range(4)]
      )
      model = fewshot.fit(train.values[chosen], train.labels[chosen], 4, l2=1024.0)
      result.append(np.mean(fewshot.predict(model, test.values) == test.labels))
    assert row['accuracies'] == result
    assert row['accuracy'] == pytest.approx(np.mean(result))
    assert row['spread'] == pytest.approx(np.std(result, ddof=1))
    assert (row['train_count'], row['count'], row['short']) == (4 * row['shots'], 41, {})


def test_a_class_with_fewer_images_than_shots_is_told():
  train = clusters(41)  # 11, 10, 10, 10
  ample, short = fewshot.measure(train, clusters(9, seed=1), shots=(10, 11), seeds=(0,))
  assert ample['short'] == {} and short['short'] == {'b': 10, 'c': 10, 'd': 10}
  assert short['train_count'] == 41 and short['spread'] is None
  assert 'fewer than 11 images of a class: b 10, c 10, d 10' in fewshot.lines([ample, short])[-1]


@pytest.mark.parametrize('options', [{'shots': (0,)}, {'shots': ()}, {'seeds': ()}])
def test_no_shots_or_seeds_are_refused(options):
  with pytest.raises(ValueError, match='must be at least 1'):
    fewshot.measure(clusters(9), clusters(9), **options)


def test_regularisation_is_chosen_on_validation_data_and_the_last_fit_has_both():
  from sklearn.linear_model import LogisticRegression
  from sklearn.pipeline import make_pipeline
  from sklearn.preprocessing import StandardScaler

  train, validation, test = (
    clusters(size, noise=2.5, seed=seed) for seed, size in enumerate((40, 61, 33))
  )

  def reference(c, parts, on):
    values, truth = (np.concatenate([getattr(p, n) for p in parts]) for n in ('values', 'labels'))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
    return model.fit(np.float64(values), truth).score(np.float64(on.values), on.labels)

  grid = (10.0, 1e-4, 0.01)
  result = linear.measure(train, validation, test, grid=grid)
  searched = [reference(c, [train], validation) for c in sorted(grid)]
  assert [row['C'] for row in result['search']] == sorted(grid)
  assert [row['accuracy'] for row in result['search']] == searched
  best = sorted(grid)[int(np.argmax(searched))]
  assert result['C'] == best and result['validation_accuracy'] == max(searched)
  assert result['accuracy'] == reference(best, [train, validation], test)
  counts = [result[name] for name in ('train_count', 'validation_count', 'count')]
  assert counts == [40, 61, 33]


def test_a_regression_that_was_cut_off_says_so(monkeypatch):
  monkeypatch.setattr(linear, 'STEPS', 1)
  result = linear.measure(clusters(40), clusters(20, seed=1), clusters(9, seed=2), grid=(1.0,))
  assert not result['converged'] and 'not converged' in linear.lines(result)[-1]


@pytest.mark.parametrize('measure', [knn.measure, fewshot.measure])
def test_several_labels_or_none_are_refused_by_the_probes(measure):
  result = model_of()
  many = features.extract(result, split_of(9, label=several))
  none = features.extract(result, split_of(9, label=lambda _: -1))
  one = features.extract(result, split_of(30))
  with pytest.raises(ValueError, match='multi-label'):
    measure(one, many)
  with pytest.raises(ValueError, match="no image of split 'test' of made has a label"):
    measure(one, none)


# Commands


@pytest.fixture
def headless(tmp_path):
  """A bundle of features only, for digits."""
  model = tiny(num_classes=0, depth=1)
  options = bundle.Preprocess('resize', SIZE)
  made = bundle.Bundle(model, drawn(shapes(model)), (), options, 'ViT-Ti/16')
  bundle.write(tmp_path / 'headless', made)
  return tmp_path / 'headless'


def output_of(words, capsys, code=0):
  """What a command prints; of JSON, its value."""
  assert vit.main(list(map(str, words))) == code
  output_of = capsys.readouterr()
  if code == 2:
    assert output_of.err.count('\n') == 1 and output_of.out == '', output_of
    return output_of.err
  assert output_of.err == '' or code == 3
  return json.loads(output_of.out) if 'json' in words else output_of.out


@pytest.mark.parametrize('method', ['knn', 'fewshot', 'linear'])
def test_a_model_without_a_head_is_measured_by_its_features(method, headless, tmp_path, capsys):
  words = ['evaluate', headless, '--on', 'digits', '--method', method, '--train', 'train[:60]']
  words += ['--validation', 'validation[:50]', '--split', 'test[:70]', '--shots', '1', '2']
  words += ['--seeds', '3', '4', '--k', '1', '7']
  result = output_of([*words, '--format', 'json', '--cache', tmp_path / 'kept'], capsys)
  assert (result['source'], result['split'], result['count']) == ('digits', 'test[:70]', 70)
  assert (result['train_split'], result['train_count']) == ('train[:60]', 60)
  rows = result[method] if method != 'linear' else [result]
  assert len(rows) == {'knn': 2, 'fewshot': 2, 'linear': 1}[method]
  assert all(0.05 < row['accuracy'] <= 1 for row in rows)
  table = output_of([*words, '--cache', tmp_path / 'kept'], capsys)
  assert 'digits, split test[:70], 70 images' in table
  assert all(f'{row["accuracy"]:.2%}' in table for row in rows)
  readable = list((tmp_path / 'kept').iterdir())
  assert len(readable) == (3 if method == 'linear' else 2)


def test_without_a_test_split_a_probe_is_chosen_on_a_tenth_of_each_class_of_train(
  headless, tmp_path, capsys
):
  data = sources.open_source('digits', 'train')
  images, labels = (np.stack([data[i][key] for i in range(60)]) for key in ('image', 'label'))
  arrays = dict(x_train=images[:40], x_val=images[40:], y_train=labels[:40], y_val=labels[40:])
  np.savez(tmp_path / 'small.npz', **arrays)
  words = ['evaluate', headless, '--on', f'arrays:{tmp_path}/small.npz', '--method', 'linear']
  result = output_of([*words, '--format', 'json'], capsys)
  assert (result['split'], result['count']) == ('validation', 20)
  assert result['validation_split'] == '10% of train'
  expected = len(sources.hold_out(labels[:40], 0.1)[1])
  assert (result['train_count'], result['validation_count']) == (40 - expected, expected)


def test_the_file_has_what_is_printed(whole, tmp_path, capsys):
  words = ['evaluate', whole, '--format', 'json', '--out', tmp_path / 'out.json']
  result = output_of(words, capsys)
  assert json.loads((tmp_path / 'out.json').read_text()) == result
  assert list(tmp_path.iterdir()) == [tmp_path / 'out.json']
  assert (result['method'], result['count'], result['unlabelled']) == ('accuracy', 359, 0)
  assert np.sum(result['confusion']) == 359
  table = output_of(['evaluate', whole, '--batch-size', '7'], capsys)
  assert '359 images' in table and f'accuracy {result["accuracy"]:.2%}' in table


@pytest.mark.parametrize(
  'words, said',
  [
    (['evaluate', 'HEADLESS', '--on', 'digits'], 'no head'),
    (['evaluate', 'HEADLESS'], 'names no data'),
    (['evaluate', 'HEADLESS', '--on', 'digtis'], 'did you mean digits'),
    (['evaluate', 'HEADLESS', '--on', 'digits', '--method', 'knn', '--k', '2000'], '1 to 1259'),
    (
      ['evaluate', 'HEADLESS', '--on', 'digits', '--method', 'knn', '--train', 'test'],
      '359 images in',
    ),
    (
      ['evaluate', 'HEADLESS', '--on', 'digits', '--method', 'linear', '--validation', 'train[:9]'],
      '9 images in common',
    ),
    (
      ['evaluate', 'HEADLESS', '--on', 'digits', '--method', 'fewshot', '--shots', '0'],
      'at least 1',
    ),
    (['evaluate', 'RUN/model'], 'names no data'),
    (['evaluate', 'RUN', '--split', 'tset'], 'did you mean test'),
    (['evaluate', 'RUN', '--batch-size', '0'], '0'),
    (['evaluate', 'RUN', '--batch-size', '-4'], '-4'),
    (['evaluate', 'RUN', '--on', 'folder:PHOTOS'], '--label_map'),
    (['evaluate', 'RUN', '--on', 'folder:PHOTOS', '--split', 'test'], 'test'),
    (['evaluate', 'RUN', '--out', '/dev/null/x.json'], 'x.json'),
    (['evaluate', 'RUN', '--label_map', 'nowhere.json'], 'nowhere.json'),
    (['evaluate', 'RUN', '--method', 'knn', '--label_map', 'a.json'], 'for --method accuracy'),
    (['evaluate', 'RUN', '--preprocess', 'resiez'], 'did you mean resize'),
    (['features', 'RUN', '--out', 'OUT/f.txt'], 'f.txt'),
    (['features', 'RUN', '--out', 'OUT/none/f.npz'], 'f.npz cannot be written'),
    (['features', 'RUN', 'PHOTOS', '--on', 'digits', '--out', 'OUT/f.npz'], 'not both'),
    (['features', 'nowhere', '--out', 'OUT/f.npz'], 'nowhere'),
  ],
)
def test_what_cannot_be_measured_is_one_line(
  words, said, whole, headless, photos, tmp_path, capsys
):
  names = {'HEADLESS': headless, 'RUN': whole, 'PHOTOS': photos, 'OUT': tmp_path}
  for name, path in names.items():
    words = [word.replace(name, str(path)) for word in words]
  assert said in output_of(words, capsys, code=2)
  assert not list(tmp_path.glob('f.*'))


@pytest.fixture
def photos(tmp_path, monkeypatch):
  """A folder of two classes of ten small images."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  for label, name in enumerate(('rose', 'tulip')):
    (tmp_path / 'photos' / name).mkdir(parents=True)
    for index in range(10):
      image = Image.fromarray(picture(100 * label + index))
      image.save(tmp_path / 'photos' / name / f'{index}.png')
  return tmp_path / 'photos'


def test_features_of_a_data_set_are_in_the_file(whole, tmp_path, capsys):
  words = ['features', whole, '--on', 'digits', '--split', 'test[:9]', '--out', tmp_path / 'f.npz']
  assert '9 x 16 features' in output_of(words, capsys)
  source = sources.open_source('digits', 'test[:9]')
  want = vit_jax.load(whole).features([source[i]['image'] for i in range(9)])
  with np.load(tmp_path / 'f.npz', allow_pickle=False) as readable:
    assert readable['features'].dtype == np.float32
    np.testing.assert_allclose(readable['features'], want, atol=1e-5)
    assert readable['labels'].tolist() == [source[i]['label'] for i in range(9)]
    assert readable['names'].tolist() == [source.describe(i) for i in range(9)]
    assert readable['classes'].tolist() == list('0123456789')


def test_features_of_images_are_named_by_their_files(whole, photos, tmp_path, capsys):
  (photos / 'rose' / '3.png').write_bytes(b'')
  words = ['features', whole, photos, tmp_path / 'gone.png', '--out', tmp_path / 'f.npz']
  assert '19 x 16 features' in output_of(words, capsys, code=3)
  with np.load(tmp_path / 'f.npz', allow_pickle=False) as readable:
    names, values = readable['names'].tolist(), readable['features']
    assert set(readable['labels'].tolist()) == {-1}
  paths = [str(file) for file in sorted(photos.rglob('*.png')) if file.stat().st_size]
  assert names == paths
  np.testing.assert_allclose(values, vit_jax.load(whole).features(paths), atol=1e-5)


@pytest.mark.parametrize('label', [lambda i: -1 if i == 2 else i % 5, several])
def test_a_table_of_features_reads_back(label, tmp_path):
  parquet = pytest.importorskip('pyarrow.parquet')
  made = features.extract(model_of(), split_of(9, label=label))
  features.write(tmp_path / 'f.parquet', made, [f'{i}.png' for i in range(9)])
  table = parquet.read_table(tmp_path / 'f.parquet')
  rows = table.to_pylist()
  assert [row['name'] for row in rows] == [f'{i}.png' for i in range(9)]
  np.testing.assert_array_equal(np.float32([row['features'] for row in rows]), made.values)
  if label is several:
    assert rows[0]['label'] == [0, 2] and rows[2]['label'] == []
  else:
    assert [row['label'] for row in rows] == made.labels.tolist()
    assert [row['class'] for row in rows[:3]] == ['ant', 'bee', None]
  assert json.loads(table.schema.metadata[b'classes']) == list(NAMES)


@pytest.mark.parametrize('kind', ['npz', 'parquet'])
def test_features_cut_off_in_the_writing_leave_the_old_file(kind, tmp_path, monkeypatch):
  if kind == 'parquet':
    pytest.importorskip('pyarrow')
  file = tmp_path / f'f.{kind}'
  file.write_bytes(b'old')
  made = features.extract(model_of(), split_of(3))

  def killed(*_, **__):
    raise KeyboardInterrupt

  monkeypatch.setattr(features.np, 'savez', killed)
  monkeypatch.setattr(features, 'write_table', killed)
  with pytest.raises(KeyboardInterrupt):
    features.write(file, made, ['a', 'b', 'c'])
  assert file.read_bytes() == b'old' and list(tmp_path.iterdir()) == [file]


# docs/evaluation.md


@pytest.fixture
def in_docs_folder(whole, photos, tmp_path, monkeypatch):
  """The folder that the examples run in."""
  (tmp_path / 'runs').mkdir()
  (tmp_path / 'runs' / 'digits').symlink_to(whole)
  (mapping,) = blocks(DOCUMENT, 'json')
  (tmp_path / 'photos.json').write_text(mapping)
  monkeypatch.chdir(tmp_path)


COMMANDS = [line for line in blocks(DOCUMENT, '')[0].splitlines() if line]


@pytest.mark.parametrize('line', COMMANDS)
def test_a_command_of_the_page_runs(line, in_docs_folder, capsys):
  program, *words = shlex.split(line)
  assert program == 'vit' and vit.main(words) == 0
  assert capsys.readouterr().err == ''


def test_every_method_and_field_is_told(in_docs_folder, capsys):
  assert [coded(row[0]) for row in table('`--method`', DOCUMENT)] == [[m] for m in evaluate.METHODS]
  result = output_of(['evaluate', 'runs/digits', '--format', 'json'], capsys)
  assert {name for row in table('field', DOCUMENT) for name in coded(row[0])} == set(result)


def test_the_label_maps_told_are_presets():
  for row in table('data', DOCUMENT):
    (name,) = re.findall(r'--on (\w+)', ' '.join(row))
    assert presets.PRESETS[name].classes == 1000


def test_the_numbers_told_are_those_that_hold():
  text = ' '.join(DOCUMENT.read_text().split())
  assert (
    f'in {classify.BINS} bins' in text and f'exp(similarity / {neighbours.TEMPERATURE})' in text
  )
  assert f'over {classify.LARGEST_CONFUSION:,} classes' in text
  assert f'{loop.LARGEST:,} scores' in text
  assert f'a constant of {fewshot.CONSTANT:.0f} appended' in text
  assert f'a ridge of {fewshot.L2:.0f}' in text
  assert f'C of {linear.GRID[0]:.5f} ... {linear.GRID[-1]:.0f}' in text


def test_python_of_the_page_runs(in_docs_folder):
  (block,) = blocks(DOCUMENT, 'python')
  with contextlib.redirect_stderr(io.StringIO()):
    exec(block, {})
