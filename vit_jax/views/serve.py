"""The page of `vit serve`: a photo goes in, what the model makes of it comes out."""

import base64
import hashlib

from vit_jax.text import quantity
from vit_jax.views import html


def page(
  title: str,
  *,
  architecture: str,
  classes: int,
  size: tuple[int, int],
  looks: bool,
  attends: bool,
  no_photos: str,
  image_bytes: int,
) -> tuple[str, str]:
  """The page, and the Content-Security-Policy that it is to be sent with.

  Args:
    title: of the model, a stranger's text.
    architecture: its name.
    classes: how many.
    size: (height, width) of its images in pixels.
    looks: whether it can be looked into.
    attends: whether it has attention.
    no_photos: why it has no training photos; '' where it has.
    image_bytes: that a photo may have.
  """
  style = html.asset('style.css') + html.asset('serve.css')
  script = html.asset('serve.js')
  facts = {'looks': looks, 'attends': attends, 'photos': not no_photos, 'bytes': image_bytes}
  text = html.render(
    'serve.html',
    title=html.escape(title),
    model=html.escape(f'{architecture}, {quantity(classes, "class")}'),
    size=f'{size[0]} × {size[1]}',
    style=style,
    facts=html.script_json(facts | {'ramp': html.RAMP.tolist()}),
    script=script,
  )
  policy = {
    'default-src': "'none'",
    'script-src': digest(f'\n{script}\n'),
    'style-src': digest(f'\n{style}\n'),
    'img-src': 'data: blob:',
    'media-src': 'blob:',
    'connect-src': "'self'",
    'base-uri': "'none'",
    'form-action': "'none'",
    'frame-ancestors': "'none'",
  }
  return text, '; '.join(f'{name} {value}' for name, value in policy.items())


def digest(text: str) -> str:
  """What lets a policy take this element, and no other."""
  return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
