"""The short way: a data set is enough, the long line is the same run, other tools' words help."""

import contextlib
import pathlib
import queue
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.conftest import drawn, shapes, tiny
from tests.test_run import cache, contents, whole
from vit_jax import __main__ as vit
from vit_jax import bundle, config, main, workdir
from vit_jax.commands import flags, short, words
from vit_jax.guards import legs
from vit_jax.plan import make_plan
from vit_jax.views import report

__all__ = ['cache', 'whole']
OLD_NAMES = {'vit', 'mixer_base16_cifar10'}


@pytest.fixture
def photos(tmp_path, monkeypatch):
  """A working folder with photos/ of two classes, and a checkpoint of images of 16 pixels."""
  monkeypatch.chdir(tmp_path)
  for index in range(96):
    add_photo(index)
  model = tiny(num_classes=2)
  params, looks = drawn(shapes(model, (16, 16))), bundle.Preprocess('resize', (16, 16))
  bundle.write('start', bundle.Bundle(model, params, ('a', 'b'), looks, 'ViT-Ti/16'))
  return tmp_path


def add_photo(index):
  path = pathlib.Path('photos', ('rose', 'tulip')[index % 2], f'{index}.png')
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(index).integers(0, 256, (40, 48, 3), np.uint8)
  Image.fromarray(pixels).save(path)


def expanded(line):
  return short.expand(flags.parse('train', shlex.split(line)))


def claimed(line):
  """The line spelt out, its folder made its run's, as when it has begun."""
  result = expanded(line)
  make_plan(result.config(), result.workdir).claim(result.workdir)
  return result


def test_every_recipe_is_told_with_what_it_is_for(capsys):
  with contextlib.suppress(SystemExit):
    vit.main(['train', '--help'])
  shipped = {path.stem for path in config.SHIPPED.glob('[!_]*.py')} - OLD_NAMES - {'default'}
  assert set(flags.RECIPES) == shipped
  text = capsys.readouterr().out
  assert all(f'{name} ' in text and purpose in text for name, purpose in flags.RECIPES.items())


@pytest.mark.parametrize(
  'source, start, count, spec',
  [
    ('digits', '', 1_259, 'digits'),
    ('folder:photos', '', 1_000, 'scratch:folder:photos'),
    ('folder:photos', '', 100_000, 'pretrain:S/16,folder:photos'),
    ('folder:photos', 'B_16', 1_000, 'augreg:B_16,folder:photos'),
    ('cifar10', 'vit_base_patch16_224', 50_000, 'augreg:vit_base_patch16_224,cifar10'),
    ('folder:photos', 'H_14', 1_000, 'finetune:ViT-H/14,folder:photos'),
    ('folder:photos', 'Mixer-B/16', 1_000, 'mixer:Mixer-B/16,folder:photos'),
    ('folder:photos', 'start', 1_000, 'finetune:start,folder:photos'),
    ('folder:photos', 'https://a.b/c.npz', 9, 'finetune:https://a.b/c.npz,folder:photos'),
  ],
)
def test_a_recipe_follows_from_the_data_and_what_is_started_from(
  source, start, count, spec, photos
):
  assert short.recipe(source, start, count) == spec


def test_images_without_labels_are_not_taken_for_what_a_start_classified(photos):
  with pytest.raises(ValueError, match=r'no labels: .*--config=mae:B/16,images:photos,start'):
    expanded('images:photos --from start')


def test_a_file_here_is_meant_before_a_published_one(photos):
  shutil.copy('start/model.safetensors', 'B_16.npz')
  assert short.recipe('digits', 'B_16', 9) == 'finetune:B_16.npz,digits'
  pathlib.Path('files').mkdir()
  shutil.move('B_16.npz', 'files/S_16.npz')
  assert short.recipe('digits', 'S_16', 9, folder='files') == 'finetune:files/S_16.npz,digits'


@pytest.mark.parametrize(
  'line',
  [
    'folder:photos',
    'photos/ --lr 3e-4 --epochs 2 --batch 16 --size 32',
    'photos --from start --config.seed=3',
    'images:photos --size 32',
  ],
)
def test_the_long_form_that_is_said_is_the_same_run(line, photos, capsys):
  result = expanded(line)
  *_, said = capsys.readouterr().out.splitlines()
  words = shlex.split(said.removeprefix('in full: vit train '))
  assert expanded(shlex.join(words)).config() == result.config()
  assert result.workdir == 'runs/photos'


def test_short_flags_are_spellings_of_fields(photos):
  chosen = expanded('photos --lr 3e-4 --epochs 2 --batch 16 --size 32').config()
  assert chosen.schedule.learning_rate == 3e-4 and chosen.duration == '2 epochs'
  assert chosen.batch_size == 16 and chosen.image_size == (32, 32)
  args = flags.parse('train', ['--config=digits', '--workdir=x', '--lr=1', '--epochs', '.5'])
  assert args.overrides == ['schedule.learning_rate=1', 'duration=.5 epochs']


def test_the_rate_is_in_proportion_to_the_batch_unless_it_is_asked_for(photos):
  plain, larger = expanded('photos').config(), expanded('photos --batch 32').config()
  assert plain.batch_size == 8  # of 86 images; that of eight devices
  rate = plain.schedule.learning_rate
  assert rate > 0 and larger.schedule.learning_rate == pytest.approx(4 * rate, rel=1e-3)


def test_a_run_of_ours_is_continued_at_its_own_size(photos):
  assert expanded('photos --from start').config().image_size == (16, 16)
  assert expanded('photos --from start --size 24').config().image_size == (24, 24)


def test_a_cpu_takes_as_many_images_at_a_time_as_fit(photos):
  chosen = expanded('photos --batch 64 --size 448').config()
  assert (chosen.batch_size, chosen.accumulate) == (64, 4)  # 8 devices, each 8, 2 at a time


def test_the_same_line_has_the_same_folder_and_another_line_another(photos, capsys):
  first = claimed('photos --epochs 2')
  assert expanded('folder:photos --epochs 2') == first and first.workdir == 'runs/photos'
  assert expanded('photos --epochs 3').workdir == 'runs/photos-2'
  assert 'runs/photos holds another run' in capsys.readouterr().out
  claimed('photos --epochs 3')
  assert expanded('photos --epochs 3').workdir == 'runs/photos-2'
  assert expanded('photos --epochs 2 --config.system.threads=1').workdir == 'runs/photos'


def test_a_run_keeps_what_another_machine_chose_but_not_what_is_asked_for(photos, monkeypatch):
  first = claimed('photos --batch 16')
  monkeypatch.setitem(short.PIXELS, 'cpu', 1)
  assert expanded('photos --batch 16').config() == first.config()
  assert expanded('photos --batch 16 --workdir runs/photos').config() == first.config()
  assert expanded('photos --batch 24').workdir == 'runs/photos-2'


def test_the_line_that_began_a_run_resumes_its_later_legs(photos):
  first = claimed('photos --epochs 2')
  changes = {'duration': ['2 epochs', '5 epochs'], 'optimizer.clip': [1.0, 2.0]}
  folder = pathlib.Path(first.workdir)
  stored = workdir.read_config(folder)
  legs.write(folder, [legs.Leg(3, changes, {'extend': '3 epochs', 'change': []})])
  workdir.files.write_json(folder / 'config.json', legs.config_at(stored, legs.read(folder)))
  again = expanded('photos --epochs 2')
  assert again.workdir == first.workdir
  assert (again.config().duration, again.config().optimizer.clip) == ('5 epochs', 2.0)
  make_plan(again.config(), again.workdir).claim(again.workdir)


def test_other_photos_under_the_name_are_another_run(photos):
  claimed('photos')
  for index in (96, 97):
    add_photo(index)
  assert expanded('photos').workdir == 'runs/photos-2'


def test_a_folder_that_is_named_is_taken_and_refused_by_what_differs(photos):
  line = claimed('photos --epochs 2')
  other = expanded(f'photos --epochs 3 --workdir {line.workdir}')
  plan = make_plan(other.config(), other.workdir)
  with pytest.raises(ValueError, match="duration is '2 epochs' there and '3 epochs' here"):
    plan.claim(other.workdir)


def test_the_folder_of_a_run_alone_resumes_it(whole, tmp_path, capsys):
  run = tmp_path / 'run'
  shutil.copytree(whole, run)
  assert main.main([f'--workdir={run}']) == 0
  assert f'{run} is finished' in capsys.readouterr().out
  assert contents(run) == contents(whole)
  assert main.main([str(run)]) == 2
  assert f'is a run, no data set: vit train --workdir={run} resumes it' in capsys.readouterr().err


def test_the_config_of_a_stopped_run_is_read_back_as_it_was(photos):
  line = claimed('photos --from start --epochs 2')
  resumed = expanded(f'--workdir={line.workdir}')
  plan = make_plan(resumed.config(), line.workdir)
  assert workdir.as_json(plan.config) == workdir.read_config(pathlib.Path(line.workdir))
  plan.claim(line.workdir)


def test_what_was_not_written_for_its_secrets_is_asked_for(tmp_path):
  stored = config.load('digits', ['pretrained=https://me:pw@a.b/c.npz'])
  workdir.files.write_json(tmp_path / 'config.json', workdir.as_json(stored))
  with pytest.raises(ValueError, match=r'--config\.pretrained=\.\.\.'):
    workdir.resumed_config(tmp_path)
  resumed = workdir.resumed_config(tmp_path, ['pretrained=https://me:pw@a.b/c.npz'])
  assert resumed == stored


@pytest.mark.parametrize('display', ['', ':0'])
def test_open_shows_a_page_that_lives_where_there_is_a_display_and_says_so_where_there_is_none(
  display, tmp_path, monkeypatch, capsys
):
  opened = queue.Queue()
  monkeypatch.setattr(main.webbrowser, 'open', opened.put)
  for name in main.DISPLAYS:
    monkeypatch.setenv(name, display)
  page = tmp_path / 'report.html'
  page.write_text('<p>Stopped')
  assert not report.is_current(tmp_path)  # of a start before: it is waited for the next page
  page.write_text('<noscript><meta http-equiv="refresh" content="20"></noscript><meta name="live">')
  main.open_report(tmp_path)
  if display:
    assert opened.get(timeout=10) == page.as_uri()
  assert ('there is no display here' in capsys.readouterr().err) is not bool(display)
  assert opened.empty()


# Words of other tools


@pytest.mark.parametrize(
  'word, said',
  [
    ('--imgsz=224', '`imgsz` is `--size` here'),
    ('--learning-rate=1', '`learning-rate` is `--lr` here'),
    ('--bs=8', '`bs` is `--batch` here'),
    ('--num_train_epochs=8', '`num_train_epochs` is `--epochs` here'),
    ('--workers=8', '`workers` is `--config.system.workers` here'),
    ('--wd=0.1', '`wd` is `--config.optimizer.weight_decay` here'),
    ('--patience=3', '`patience` is `--config.evaluation.patience` here'),
    ('--amp', '`amp` is `--config.model.dtype` here'),
    ('--name=a', '`name`: `--workdir=DIR`'),
    ('--device=0', '`device`: JAX takes every device'),
    ('--resume', '`resume`: `vit train --workdir=RUN` resumes'),
    ('--data=photos', '`data`: the data set is the first word'),
    ('--pretrained', '`pretrained`: `--from MODEL`'),
    ('imgsz=224', '`imgsz` is `--size` here'),
  ],
)
def test_a_flag_of_another_tool_gets_the_flag_that_it_is_here(word, said, capsys):
  with pytest.raises(SystemExit):
    main.main(['folder:photos', word])
  assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize('name', ' '.join(words.COMMAND_WORDS).split())
def test_a_command_of_another_tool_gets_the_command_that_it_is_here(name, capsys):
  assert vit.main([name]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  command = line.partition('; it is `vit ')[2].partition('`')[0].split()[0]
  assert command in vit.COMMANDS and name not in vit.COMMANDS


def test_every_field_that_a_word_of_another_tool_means_is_one():
  fields = config.flat(config.default())
  assert set(words.FIELDS.values()) <= fields.keys()
  sections = {name.partition('.')[0] for name in fields}
  for word, field in words.FIELDS.items():
    if word not in sections:
      assert repr(field) in config.unknown_field(word, list(fields))


def test_hints_name_flags_and_fields_that_there_are():
  fields = {f'config.{field}' for field in config.flat(config.default())}
  for command, table in words.WORDS.items():
    parser = flags.Parser(prog=f'vit {command}')
    getattr(flags, command)(parser)
    choices = {word.removeprefix('--') for word in parser._option_string_actions} | fields
    for text in table.values():
      named = {word.strip('`.,').partition('=')[0] for word in text.split() if '`--' in word}
      assert {word.strip('`-') for word in named} <= choices, text
