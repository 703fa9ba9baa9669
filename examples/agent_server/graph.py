"""The graph that the server serves; it needs no key and no network: its chat model is a script.

It is compiled without a checkpointer. The server gives it the one that `langgraph.json` names.
"""

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.graph import START, MessagesState, StateGraph


class ScriptedModel(BaseChatModel):
    """Plays a chat model that remembers what it was told, if its messages hold it."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **options: object,
    ) -> ChatResult:
        del stop, run_manager, options
        told = [message.text for message in messages if message.type == "human"]
        said = AIMessage(f"You told me {len(told)} things, at first: {told[0]}")
        return ChatResult(generations=[ChatGeneration(message=said)])


model = ScriptedModel()


async def answer(state: MessagesState) -> dict[str, list[BaseMessage]]:
    """The graph's one node."""
    return {"messages": [await model.ainvoke(state["messages"])]}


builder = StateGraph(MessagesState)
builder.add_node("answer", answer)
builder.add_edge(START, "answer")
graph = builder.compile()
