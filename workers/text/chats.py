"""Renders chats by the chat template of the model that reads them."""

from __future__ import annotations

from service.errors import DataInvalid
from service.inputs.texts.documents import Render
from service.inputs.texts.rows import Chat
from workers.text.sequences import Tokenizer, sequence_prefix


def chat_renderer(tokenizer: Tokenizer, param: str) -> Render:
    """Makes the text of a chat, with the template's own special tokens, as a model is trained on.

    A BOS that the template puts first is left out if every sequence begins with one anyway.
    Rendering raises DataInvalid about `param`, the field of the request that names the text.
    """
    begins_with_bos = sequence_prefix(tokenizer)[:1] == [tokenizer.bos_token_id]

    def render(chat: Chat, where: str) -> str:
        if not tokenizer.chat_template:
            raise DataInvalid(
                f"'{where}' is a chat, and the model's tokenizer has no chat template to render it "
                "by. Use a model with a template, such as the instruction-tuned one, or save each "
                f"chat as one text in a field of its own and name that in {param}.",
                param=param,
            )
        try:
            text = tokenizer.apply_chat_template([*map(dict, chat.messages)], tokenize=False)
        except MemoryError:
            raise
        except Exception as error:  # a template is a program
            raise DataInvalid(
                f"The model's chat template cannot render '{where}': {error}. Templates often want "
                "roles that take turns, the user's first: change the chat, or save each as one "
                f"text in a field of its own and name that in {param}.",
                param=param,
            ) from error
        bos = tokenizer.bos_token if begins_with_bos else None
        return str(text).removeprefix(bos or "")

    return render
