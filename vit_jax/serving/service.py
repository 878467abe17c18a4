"""The answers: predictions, looks into the model, the nearest photos, health, metrics, the page."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

import numpy as np

from vit_jax.images.decoding import BadImage
from vit_jax.predict import Run
from vit_jax.serving import batching, counters, looking, requests
from vit_jax.serving.batching import Rows
from vit_jax.serving.exchange import Answer, Declined, HttpRequest, Ledger, json_answer
from vit_jax.serving.front import Handler
from vit_jax.serving.neighbours import Neighbours
from vit_jax.serving.requests import Limits, Question
from vit_jax.serving.served import Served
from vit_jax.text import nearest, quantity
from vit_jax.views import serve

DECODERS = 8  # threads, at most: the pixels of an image may take 270 MB
NAMED = 1000  # classes among which a misspelt one is looked for
LOOKS = 4  # explanations that run or wait
LOOK_SECONDS = 10.0  # of occlusion, about
Result = TypeVar('Result')


class Service:
  """What answers for a model; every method on a `HttpRequest` runs in the server's thread.

  Images are decoded by a thread for each processor, predicted in the batcher's, and looked into in
  one more: explanations wait for each other, predictions for none of them.
  """

  def __init__(self, served: Served, neighbours: Neighbours, limits: Limits, *, batch: int):
    self.served, self.neighbours, self.limits = served, neighbours, limits
    self.counters = counters.Counters()
    sizes = batching.timed_sizes(served.step, served.shape, largest=batch)
    self.batcher = batching.Batcher(
      served.step, sizes, limit=limits.queue, report=self.counters.add_batch
    )
    self.ledger = Ledger(limits.held_bytes)
    self.decoders = ThreadPoolExecutor(min(os.cpu_count() or 1, DECODERS), 'decode')
    self.lookers = ThreadPoolExecutor(1, 'look')
    self.looks = threading.BoundedSemaphore(LOOKS)
    self.began = time.time()
    self.page_answer = self.rendered_page()

  @property
  def handlers(self) -> dict[str, dict[str, Handler]]:
    """By path and method."""
    return {
      '/': {'GET': self.page},
      '/predict': {'POST': self.predict},
      '/look': {'POST': self.look},
      '/occlusion': {'POST': self.occlusion},
      '/nearest': {'POST': self.nearest},
      '/health': {'GET': self.health},
      '/metrics': {'GET': self.metrics},
    }

  def close(self) -> None:
    """Ends its threads."""
    self.batcher.close()
    for pool in (self.decoders, self.lookers):
      pool.shutdown(wait=False, cancel_futures=True)

  # Answers

  async def page(self, request: HttpRequest) -> Answer:
    return self.page_answer

  async def health(self, request: HttpRequest) -> Answer:
    """200 while images are answered, 503 where their thread has ended."""
    alive = self.batcher.thread.is_alive()
    facts = {
      'status': 'ok' if alive else 'failed',
      'model': self.served.title,
      'architecture': self.served.architecture,
      'classes': len(self.served.classes),
      'queue': self.batcher.admitted,
      'seconds': round(time.time() - self.began, 1),
    }
    return json_answer(facts, status=200 if alive else 503)

  async def metrics(self, request: HttpRequest) -> Answer:
    text = self.counters.text(waiting=self.batcher.admitted)
    return Answer(text.encode(), counters.TYPE)

  async def predict(self, request: HttpRequest) -> Answer:
    """{'predictions': [...]} of an image, {'results': [[...], ...]} of a list of them."""
    async with self.question(request) as question:
      with self.admitted(len(question.images)):
        rows = await asyncio.gather(*map(self.scored, await self.decoded(question)))
    request.note = quantity(len(rows), 'image')
    ranked = [self.served.ranked(row['scores'], question.top) for row in rows]
    return json_answer({'results': ranked} if question.is_list else {'predictions': ranked[0]})

  async def look(self, request: HttpRequest) -> Answer:
    """The image as the model takes it, and its attention and rollout where there are any."""
    run, image = self.looked_into(), await self.one_image(request)
    if not looking.has_attention(run):
      return json_answer({'image': looking.shown_image(image)})
    attended = await self.in_looker(lambda: looking.attention(run, image))
    return json_answer({'image': looking.shown_image(image), **attended})

  async def occlusion(self, request: HttpRequest) -> Answer:
    """Where the score of the class `label` of the query comes from."""
    run, classes = self.looked_into(), self.served.classes
    name = request.query.get('label', '')
    if name not in classes:
      raise Declined(
        400, f'label {name!r:.80} is no class here{nearest(name[:80], list(classes[:NAMED]))}'
      )
    image = await self.one_image(request)
    squares = int(self.batcher.rate * min(LOOK_SECONDS, self.limits.seconds / 2))
    hidden = await self.in_looker(
      lambda: looking.occlusion(
        run, image, classes.index(name), scores=self.patient_scores, squares=squares
      )
    )
    return json_answer(hidden)

  async def nearest(self, request: HttpRequest) -> Answer:
    """{'state': 'ready', 'photos': [...]}, or another state and why."""
    photos: list[dict[str, object]] = []
    image = await self.one_image(request)
    self.neighbours.start()
    if self.neighbours.state == 'ready':
      with self.admitted(1):
        vector = (await self.scored(image))['pre_logits']
      photos = await self.in_looker(lambda: self.neighbours.nearest(vector))
    state = {'state': self.neighbours.state, 'reason': self.neighbours.reason}
    return json_answer({**state, 'photos': photos})

  # Their parts

  @asynccontextmanager
  async def question(self, request: HttpRequest) -> AsyncIterator[Question]:
    """What a body asks for; its bytes are counted until the end of the context."""
    body = await request.body(self.ledger, self.limits.body_bytes)
    try:
      kind = request.headers.get('content-type', '')
      yield await self.in_decoder(lambda: requests.parse(body, kind, request.query, self.limits))
    finally:
      self.ledger.release(len(body))

  @contextmanager
  def admitted(self, count: int) -> Iterator[None]:
    """Room for so many images among those that wait; Declined where there is none."""
    try:
      with self.batcher.admit(count):
        yield
    except batching.Busy as error:
      raise Declined(503, error, retry=error.seconds) from None

  async def decoded(self, question: Question) -> list[np.ndarray]:
    """The images as the model takes them; Declined with the number of the first that is none."""
    return list(
      await asyncio.gather(
        *(self.prepared(data, i, question.is_list) for i, data in enumerate(question.images))
      )
    )

  async def prepared(self, data: bytes, index: int, is_list: bool) -> np.ndarray:
    try:
      return await self.in_decoder(lambda: self.served.prepared(data))
    except (BadImage, ValueError) as error:
      raise Declined(400, f'image {index}: {error}' if is_list else error) from None

  async def one_image(self, request: HttpRequest) -> np.ndarray:
    """The only image of a request, as the model takes it."""
    async with self.question(request) as question:
      if question.is_list:
        raise Declined(400, f'{request.path} takes one image, not a list')
      return (await self.decoded(question))[0]

  async def scored(self, image: np.ndarray) -> Rows:
    """What the model makes of an image, in a batch with others."""
    return await asyncio.wrap_future(self.batcher.submit(image))

  def patient_scores(self, images: list[np.ndarray]) -> np.ndarray:
    """(N, K) of many images, which wait for those of requests; called in a looker's thread."""
    results = [self.batcher.submit(image, patient=True) for image in images]
    return np.stack([result.result()['scores'] for result in results])

  def rendered_page(self) -> Answer:
    """The page, which may load and run nothing but what is in it."""
    served, run = self.served, self.served.run
    text, policy = serve.page(
      served.title,
      architecture=served.architecture,
      classes=len(served.classes),
      size=served.shape[:2],
      looks=not served.no_looks,
      attends=run is not None and looking.has_attention(run),
      no_photos=self.neighbours.reason,
      image_bytes=self.limits.image_bytes,
    )
    headers = {'Content-Security-Policy': policy, 'Permissions-Policy': 'camera=(self)'}
    return Answer(text.encode(), 'text/html; charset=utf-8', headers=headers)

  def looked_into(self) -> Run:
    """The run; Declined where there are only answers."""
    if self.served.run is None or self.served.no_looks:
      raise Declined(400, self.served.no_looks)
    return self.served.run

  async def in_decoder(self, function: Callable[[], Result]) -> Result:
    return await asyncio.get_running_loop().run_in_executor(self.decoders, function)

  async def in_looker(self, function: Callable[[], Result]) -> Result:
    """Runs an explanation; Declined where several wait."""
    if not self.looks.acquire(blocking=False):
      raise Declined(503, 'other explanations are being computed', retry=5)
    future = self.lookers.submit(function)
    future.add_done_callback(lambda _: self.looks.release())  # it runs on where nobody waits
    return await asyncio.wrap_future(future)
