"""LangChain's ChatOpenAI and OpenAIEmbeddings."""

from importlib.metadata import version

from common import BASE_URL, EMBEDDING, KEY, MODEL, check, finish
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"rain in {city}"


for responses in [False, True]:
    way = "responses" if responses else "chats"
    chat = ChatOpenAI(model=MODEL, base_url=BASE_URL, api_key=KEY, max_retries=0, timeout=60, use_responses_api=responses)
    answer = chat.invoke("hello")
    check(f"invoke by {way}", answer.text == "You said: hello" if isinstance(answer.text, str) else answer.text() == "You said: hello", answer)
    pieces = [piece.text if isinstance(piece.text, str) else piece.text() for piece in chat.stream("hello")]
    check(f"stream by {way}", "".join(pieces) == "You said: hello" and len(pieces) > 1, pieces)
    question = HumanMessage("what is the weather?")
    bound = chat.bind_tools([weather])
    asked = bound.invoke([question])
    check(f"tools by {way}", asked.tool_calls[0]["args"] == {"city": "Zürich"}, asked)
    result = ToolMessage(weather.invoke(asked.tool_calls[0]["args"]), tool_call_id=asked.tool_calls[0]["id"])
    told = bound.invoke([question, asked, result])
    check(f"the tool's result by {way}", "The tool said: rain in Zürich" in str(told.content), told)
    person = chat.with_structured_output(Person).invoke("who?")
    check(f"structured output by {way}", person == Person(name="Ada Lovelace", age=36), person)

vectors = OpenAIEmbeddings(model=EMBEDDING, base_url=BASE_URL, api_key=KEY, check_embedding_ctx_length=False).embed_documents(["a", "four"])
check("embeddings", [vector[0] for vector in vectors] == [1.0, 4.0], vectors)
finish(f"langchain-openai {version('langchain-openai')}", "invoke, stream, tools, structured output, embeddings")
