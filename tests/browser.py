"""A headless Chromium, driven by its DevTools protocol through a pipe."""

import contextlib
import fcntl
import json
import os
import pathlib
import select
import shutil
import subprocess
import tempfile

import pytest

PATIENCE = 120  # seconds without a word from Chromium
NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')
FLAGS = (
  '--headless=new',
  '--no-sandbox',
  '--disable-gpu',
  '--disable-dev-shm-usage',
  '--disable-background-networking',
  '--no-first-run',
  '--remote-debugging-pipe',
)


def executable():
  """The path of Chromium; skips the test where there is none."""
  binary = next(filter(None, map(shutil.which, NAMES)), None)
  if binary is None:
    pytest.skip('there is no Chromium here: apt-get install chromium')
  return binary


class Browser:
  """One tab: commands of the protocol, and what went wrong in it.

  Attributes:
    errors: messages of exceptions, failed loads and console errors since `open`.
    requested: addresses that were asked for since `open`.
  """

  def __init__(self, commands, replies):
    self.commands, self.replies = commands, replies
    self.number, self.buffer, self.session = 0, b'', None
    self.errors, self.requested, self.loaded = [], [], False
    target = self('Target.createTarget', url='about:blank')['targetId']
    self.session = self('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
    for domain in ('Page', 'Runtime', 'Log', 'Network'):
      self(f'{domain}.enable')

  def __call__(self, method, **params):
    """The result of a command."""
    self.number += 1
    message = {'id': self.number, 'method': method, 'params': params}
    if self.session:
      message['sessionId'] = self.session
    self.commands.write(json.dumps(message).encode() + b'\0')
    self.commands.flush()
    while (reply := self.received()).get('id') != self.number:
      self.note(reply)
    assert 'error' not in reply, reply['error']
    return reply['result']

  def received(self):
    while b'\0' not in self.buffer:
      ready, _, _ = select.select([self.replies], [], [], PATIENCE)
      assert ready, f'Chromium is silent for {PATIENCE} s'
      chunk = os.read(self.replies.fileno(), 1 << 16)
      assert chunk, 'Chromium ended'
      self.buffer += chunk
    message, _, self.buffer = self.buffer.partition(b'\0')
    return json.loads(message)

  def note(self, event):
    method, params = event.get('method'), event.get('params', {})
    self.loaded |= method == 'Page.loadEventFired'
    if method == 'Runtime.exceptionThrown':
      self.errors.append(json.dumps(params['exceptionDetails']))
    elif method == 'Log.entryAdded' and params['entry']['level'] == 'error':
      self.errors.append(params['entry']['text'])
    elif method == 'Runtime.consoleAPICalled' and params['type'] in ('error', 'warning'):
      self.errors.append(json.dumps(params['args']))
    elif method == 'Network.requestWillBeSent':
      self.requested.append(params['request']['url'])

  def open(self, path):
    """Loads a file, until it is loaded."""
    self.visit(pathlib.Path(path).resolve().as_uri())

  def visit(self, url):
    """Loads a page, until it is loaded."""
    self.errors, self.requested, self.loaded = [], [], False
    self('Page.navigate', url=url)
    self.until_loaded()

  def until_loaded(self):
    """Waits for a page that is on its way, or will be, to be loaded."""
    while not self.loaded:
      self.note(self.received())
    self.loaded = False

  def run(self, script):
    """The value of an expression in the page; a promise is waited for."""
    reply = self('Runtime.evaluate', expression=script, awaitPromise=True, returnByValue=True)
    assert 'exceptionDetails' not in reply, reply
    return reply['result'].get('value')

  def until(self, condition):
    """Waits for an expression to become true, ten seconds at most."""
    waited = self.run(
      f'(async () => {{for (let i = 0; i < 500; i++) {{ if ({condition}) return true; '
      'await new Promise((done) => setTimeout(done, 20)); } return false; })()'
    )
    assert waited, f'never: {condition}'

  def text(self, selector):
    return self.run(f'document.querySelector({json.dumps(selector)}).textContent')

  def centre(self, selector):
    """Where an element is in the window; it is scrolled to."""
    return self.run(
      f'(() => {{const e = document.querySelector({json.dumps(selector)}); '
      "e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect(); "
      'return {x: r.x + r.width / 2, y: r.y + r.height / 2}; })()'
    )

  def hover(self, selector):
    self('Input.dispatchMouseEvent', type='mouseMoved', **self.centre(selector))

  def click(self, selector):
    where = self.centre(selector)
    self('Input.dispatchMouseEvent', type='mouseMoved', **where)
    for kind in ('mousePressed', 'mouseReleased'):
      self('Input.dispatchMouseEvent', type=kind, button='left', clickCount=1, **where)

  def press(self, key):
    text = {'text': '\r'} if key == 'Enter' else {}
    codes = {'Tab': 9, 'Enter': 13, 'Escape': 27}
    codes |= {'End': 35, 'Home': 36, 'ArrowLeft': 37, 'ArrowUp': 38}
    codes |= {'ArrowRight': 39, 'ArrowDown': 40}
    code = {'windowsVirtualKeyCode': codes[key]}
    self('Input.dispatchKeyEvent', type='keyDown', key=key, **code, **text)
    self('Input.dispatchKeyEvent', type='keyUp', key=key, **code)

  def window(self, width, height, *, dark=False):
    """A size in pixels, below 600 a phone's; a colour scheme."""
    mobile = width < 600
    self(
      'Emulation.setDeviceMetricsOverride',
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=mobile,
    )
    scheme = {'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}
    self('Emulation.setEmulatedMedia', features=[scheme])


def high(descriptor):
  """The same open file under a number that is not 3 or 4."""
  copy = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 20)
  os.close(descriptor)
  return copy


@contextlib.contextmanager
def chromium():
  """A `Browser`, which is gone afterwards."""
  path = executable()
  command_read, command_write, reply_read, reply_write = map(high, (*os.pipe(), *os.pipe()))
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
    # Chromium reads commands from its file 3 and answers to its file 4.
    shell = f'exec "$@" 3<&{command_read} 4>&{reply_write}'
    flags = (*FLAGS, f'--user-data-dir={profile}')
    process = subprocess.Popen(
      ['bash', '-c', shell, 'bash', path, *flags],
      pass_fds=(command_read, reply_write),
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(command_read)
    os.close(reply_write)
    with os.fdopen(command_write, 'wb') as commands, os.fdopen(reply_read, 'rb') as replies:
      try:
        yield Browser(commands, replies)
      finally:
        process.kill()
        process.wait()
