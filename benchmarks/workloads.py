"""What the benchmarks run: conversations that look like real ones, the same in every run.

The text is made of a few hundred words, frequent ones more often than rare ones, as in a language:
it compresses like text, neither to nothing nor not at all.
"""

from collections.abc import Sequence
from itertools import accumulate
from random import Random
from typing import Annotated, Any, Final

from langchain.agents import create_agent
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import InjectedToolCallId, tool
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph.state import CompiledStateGraph

MESSAGE_BYTES: Final = 1024
"""Text of one message, in bytes."""

MESSAGES_PER_TURN: Final = 4
"""The human's, the call of the tool, the tool's result, the answer."""

_SEED: Final = 2024
_WORDS: Final = 500
_STARTS: Final = (*"bcdfghlmnprst", "th", "sh", "st", "tr")
_MIDDLES: Final = (*"aeiou", "ea", "ou")
_ENDS: Final = ("", "", *"nrstl", "nd")


def _make_words() -> list[str]:
    """Words of one to four syllables, each once."""
    random = Random(_SEED)
    words: dict[str, None] = {}
    while len(words) < _WORDS:
        syllables = random.choices((1, 2, 3, 4), (5, 6, 3, 1))[0]
        word = "".join(
            random.choice(_STARTS) + random.choice(_MIDDLES) + random.choice(_ENDS)
            for _ in range(syllables)
        )
        words[word] = None
    return list(words)


WORDS: Final = _make_words()
# The n-th word of a language is about 1/n as frequent as its first (Zipf's law).
_FREQUENCIES: Final = list(accumulate(1 / rank for rank in range(1, _WORDS + 1)))


def prose(seed: str, size: int = MESSAGE_BYTES) -> str:
    """Sentences of `size` ASCII characters, the same for the same seed."""
    random = Random(f"{_SEED} {seed}")
    sentences: list[str] = []
    length = 0
    while length <= size:
        words = random.choices(WORDS, cum_weights=_FREQUENCIES, k=random.randint(6, 18))
        sentences.append(" ".join(words).capitalize() + random.choice(".....?!"))
        length += len(sentences[-1]) + 1
    return " ".join(sentences)[:size]


@tool
def look_up(topic: str, tool_call_id: Annotated[str, InjectedToolCallId]) -> ToolMessage:
    """Look a topic up."""
    # With an id of our own: LangGraph would make up a random one.
    text = prose(f"what is known about {topic}")
    return ToolMessage(text, tool_call_id=tool_call_id, id=f"found-{tool_call_id}")


class TalkativeModel(BaseChatModel):
    """Calls the tool once in each turn, then answers; what it says depends on the turn alone."""

    @property
    def _llm_type(self) -> str:
        return "talkative"

    def bind_tools(self, tools: Sequence[Any], **options: Any) -> "TalkativeModel":
        """The script knows its tool."""
        del tools, options
        return self

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **options: Any,
    ) -> ChatResult:
        del stop, run_manager, options
        position = len(messages)
        calls = []
        if isinstance(messages[-1], HumanMessage):
            args = {"topic": prose(f"topic {position}", 24)}
            calls = [{"name": "look_up", "args": args, "id": f"call_{position:08}"}]
        said = AIMessage(prose(f"said {position}"), id=f"said-{position:08}", tool_calls=calls)
        return ChatResult(generations=[ChatGeneration(message=said)])


def agent(
    saver: BaseCheckpointSaver[Any], model: TalkativeModel | None = None
) -> CompiledStateGraph[Any, Any, Any, Any]:
    """LangChain's agent with one tool, on the scripted model."""
    return create_agent(model or TalkativeModel(), [look_up], checkpointer=saver)


def question(turn: int) -> dict[str, list[HumanMessage]]:
    """The agent's input for a turn, which makes `MESSAGES_PER_TURN` messages of it."""
    return {"messages": [HumanMessage(prose(f"turn {turn}"), id=f"asked-{turn:08}")]}
