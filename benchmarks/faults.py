"""Injects faults into real runs, and holds what becomes of them to what is promised.

python benchmarks/faults.py [CASE...] [--tries N] [--out FILE] [--work DIR] [--seed N]
python benchmarks/faults.py --table FILE | --list

CASE is a kind, such as kills, or the beginning of a case's name, such as 'signals/SIGINT once'. All
runs are tiny, on the CPU, in processes of their own, one after the other. Each is compared with one
that nothing happened to: parameters equal to the bit, the order of images, metrics but for clocks,
no file or process that is left over, no traceback, no line of more than 300 characters.

Results are added to FILE, a line of JSON for each try: the same line goes on where it was stopped.
Those of another commit are made anew. Prints the table that docs/reliability.md shows, and below it
each try that was not as promised, and what was not tried; exits with 1 where there is one of the
former. --table prints the same of the newest commit in a file.
"""

import argparse
import contextlib
import dataclasses
import json
import logging
import pathlib
import random
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence

from injection import (
  damage,
  devices,
  disks,
  hosts,
  inputs,
  kills,
  owners,
  photos,
  places,
  readers,
  signals,
)
from injection.cases import Case, Outcome, Trial
from injection.runs import Lab

from vit_jax import workdir

KINDS = (kills, signals, damage, disks, places, owners, readers, photos, devices, hosts, inputs)
CASES: list[Case] = [case for kind in KINDS for case in kind.CASES]
HEADER = ('fault', 'tries', 'as promised', 'lost steps', 'exit', 'recovery', 'the line')
SHOWN = 90  # characters of a line in the table


def main(argv: Sequence[str] | None = None) -> int:
  """Tries the cases; 1 where one is not as promised, 2 where there is none of a name."""
  flags = parser().parse_args(argv)
  cases = [case for case in CASES if not flags.cases or case.name.startswith(tuple(flags.cases))]
  if flags.list:
    print(*(f'{case.tries:4} {case.name}: {case.promise}' for case in cases), sep='\n')
    return 0
  if not cases:
    print(f'no case begins with {" or ".join(flags.cases)}; --list names all', file=sys.stderr)
    return 2
  results = by_case(flags.table) if flags.table else try_all(cases, flags)
  print(*report(results), sep='\n')
  return int(any(outcome.faults for outcomes in results.values() for outcome in outcomes))


def try_all(cases: Sequence[Case], flags: argparse.Namespace) -> dict[str, list[Outcome]]:
  """{case: outcomes} of all tries, in a lab."""
  logging.getLogger('absl').setLevel(logging.ERROR)  # Orbax warns where a checkpoint is examined
  with (
    tempfile.TemporaryDirectory() as folder,
    contextlib.closing(
      Lab(pathlib.Path(flags.work or folder).absolute(), compiled=flags.compiled)
    ) as lab,
  ):
    return {case.name: list(outcomes(lab, case, flags)) for case in cases}


def parser() -> argparse.ArgumentParser:
  flags = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
  flags.add_argument('cases', nargs='*', metavar='CASE')
  flags.add_argument('--tries', type=int, help='of each case, at most; without it all')
  flags.add_argument('--out', type=pathlib.Path, help='a file of JSON lines that holds results')
  flags.add_argument(
    '--table', type=pathlib.Path, metavar='FILE', help='prints results, tries none'
  )
  flags.add_argument('--work', help='a folder for runs and compiled programs; it is emptied')
  flags.add_argument('--compiled', help='a folder of compiled programs; else it is in DIR')
  flags.add_argument('--seed', type=int, default=0)
  flags.add_argument('--list', action='store_true', help='names the cases, and what is promised')
  return flags


def outcomes(lab: Lab, case: Case, flags: argparse.Namespace) -> Iterator[Outcome]:
  """One of each try, those that the file of results has included."""
  if obstacle := case.obstacle():
    print(f'{case.name}: not tried, {obstacle}', file=sys.stderr)
    return
  commit = workdir.source()['commit']
  previous = read_results(flags.out, commit)
  for index in range(min(case.tries, flags.tries or case.tries)):
    key = f'{case.name} {flags.seed} {index}'
    if (outcome := previous.get(key)) is None:
      outcome = tried(lab, case, index, random.Random(key))
      if flags.out:
        record(flags.out, key, commit, outcome)
    state = 'as promised' if not outcome.faults else '; '.join(outcome.faults)
    print(f'{case.name} {index} {outcome.note}: {state}', file=sys.stderr, flush=True)
    yield outcome


def tried(lab: Lab, case: Case, index: int, rng: random.Random) -> Outcome:
  """What becomes of a run, in words that are the same on any machine."""
  with lab.fresh('run') as run:
    outcome = case.hurt(Trial(lab, index, rng, run))
  faults = [lab.without_place(fault) for fault in outcome.faults]
  return dataclasses.replace(outcome, faults=faults, line=lab.without_place(outcome.line))


def record(path: pathlib.Path, key: str, commit: str | None, outcome: Outcome) -> None:
  """Adds the outcome of a try to a file of results."""
  line = {'key': key, 'commit': commit, **dataclasses.asdict(outcome)}
  with path.open('a', encoding='utf-8') as file:
    file.write(json.dumps(line) + '\n')


def read_results(path: pathlib.Path | None, commit: str | None) -> dict[str, Outcome]:
  """{key: outcome} of the tries of a commit in a file."""
  results = {}
  for line in path.read_text('utf-8').splitlines() if path and path.exists() else []:
    fields = json.loads(line)
    key, made_at = fields.pop('key'), fields.pop('commit')
    if made_at == commit:
      results[key] = Outcome(**fields)
  return results


def by_case(path: pathlib.Path) -> dict[str, list[Outcome]]:
  """{case: outcomes} of the commit that a file of results ends with."""
  commits = [json.loads(line)['commit'] for line in path.read_text('utf-8').splitlines()]
  results: dict[str, list[Outcome]] = {}
  for key, outcome in read_results(path, commits[-1] if commits else None).items():
    results.setdefault(key.rsplit(' ', 2)[0], []).append(outcome)
  return results


def report(results: Mapping[str, Sequence[Outcome]]) -> list[str]:
  """The table, what was not as promised, and what was not tried, as lines of Markdown."""
  failures = [
    f'- {" ".join([name, *filter(None, [outcome.note])])}: {fault}'
    for name, outcomes in results.items()
    for outcome in outcomes
    for fault in outcome.faults
  ]
  tried = {title(case) for case in CASES if results.get(case.name)}
  untried = dict.fromkeys(f'- {title(case)}' for case in CASES if title(case) not in tried)
  lists = {'Not as promised': failures, 'Not tried': list(untried)}
  lines = table(results)
  for heading, items in lists.items():
    lines += ['', f'{heading}:', '', *items] if items else []
  return lines


def title(case: Case) -> str:
  """The row of the table that a case is in."""
  return case.row or case.name.partition('/')[2]


def table(results: Mapping[str, Sequence[Outcome]]) -> list[str]:
  """Lines of Markdown: a row for each case that was tried, or for several that share one."""
  shared: dict[str, list[Outcome]] = {}
  for case in CASES:
    shared.setdefault(title(case), []).extend(results.get(case.name, ()))
  rows = [HEADER, tuple('---' for _ in HEADER)]
  rows += [row(name, outcomes) for name, outcomes in shared.items() if outcomes]
  return [f'| {" | ".join(cells)} |' for cells in rows]


def row(title: str, tried: Sequence[Outcome]) -> tuple[str, ...]:
  """The cells of a case: counts, the most that was lost, the longest end, the usual recovery."""
  count = sum(outcome.count for outcome in tried)
  good = sum(outcome.count for outcome in tried if not outcome.faults)
  lost = max((o.lost for o in tried if o.lost is not None), default=None)
  exits = max((o.exit for o in tried if o.exit is not None), default=None)
  recoveries = [o.recovery for o in tried if o.recovery is not None]
  recovery = statistics.median(recoveries) if recoveries else None
  line = next((o.line for o in tried if o.line), '').replace('|', '\\|')
  return (
    title,
    str(count),
    str(good),
    '' if lost is None else str(lost),
    *('' if seconds is None else f'{seconds:.1f} s' for seconds in (exits, recovery)),
    line if len(line) <= SHOWN else line[: SHOWN - 1] + '…',
  )


if __name__ == '__main__':
  signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # ends runs, too
  sys.exit(main())
