// The official OpenAI client for Node.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";

const require = createRequire(path.join(process.env.SPILLWAY_NODE_MODULES, "anchor.js"));
const { default: OpenAI } = await import(pathToFileURL(require.resolve("openai")));
const { version } = JSON.parse(readFileSync(path.join(process.env.SPILLWAY_NODE_MODULES, "openai/package.json"), "utf8"));
const client = new OpenAI({ baseURL: process.env.SPILLWAY_BASE_URL, apiKey: process.env.SPILLWAY_KEY, maxRetries: 0, timeout: 60000 });
const [model, native, embedding] = ["mock-model", "mock-native", "mock-embedding"];
const messages = [{ role: "user", content: "hello" }];
const parameters = { type: "object", properties: { city: { type: "string" } } };
let failures = 0;

function check(what, held, seen) {
  if (!held) {
    failures += 1;
    console.log(`FAILED  ${what}: ${JSON.stringify(seen)}`);
  }
}

async function refused(what, status, code, call) {
  try {
    check(what, false, await call());
  } catch (error) {
    check(what, error.status === status && (code === undefined || error.code === code), { status: error.status, code: error.code, message: error.message });
  }
}

const models = [];
for await (const known of client.models.list()) models.push(known.id);
check("models", models.includes(model) && models.includes(native), models);

const plain = await client.chat.completions.create({ model, messages });
check("chat", plain.choices[0].message.content === "You said: hello", plain);
let text = "";
for await (const chunk of await client.chat.completions.create({ model, messages, stream: true })) text += chunk.choices[0]?.delta?.content ?? "";
check("stream", text === "You said: hello", text);

const tools = [{ type: "function", function: { name: "weather", parameters } }];
const asked = await client.chat.completions.create({ model, messages, tools });
const call = asked.choices[0].message.tool_calls[0];
check("tools: the call", JSON.parse(call.function.arguments).city === "Zürich", asked);
const told = await client.chat.completions.create({ model, tools, messages: [...messages, asked.choices[0].message, { role: "tool", tool_call_id: call.id, content: "rain" }] });
check("tools: the result", told.choices[0].message.content === "The tool said: rain", told);
const schema = { type: "object", properties: { name: { type: "string" }, age: { type: "integer" } } };
const parsed = await client.chat.completions.parse({ model, messages, response_format: { type: "json_schema", json_schema: { name: "person", schema } } });
check("structured output", parsed.choices[0].message.parsed?.age === 36, parsed);

const vectors = await client.embeddings.create({ model: embedding, input: ["a", "four"] });
check("embeddings", vectors.data.map((vector) => vector.embedding[0]).join() === "1,4", vectors);

for (const [name, want] of [[model, "You said: hello"], [native, "natively"]]) {
  const answer = await client.responses.create({ model: name, input: "hello" });
  check(`responses of ${name}`, answer.output_text === want, answer);
  const stream = client.responses.stream({ model: name, input: "hello" });
  let said = "";
  for await (const event of stream) if (event.type === "response.output_text.delta") said += event.delta;
  check(`responses of ${name}: streamed`, said === want && (await stream.finalResponse()).output_text === want, said);
}
const response = await client.responses.create({ model, input: "hello", tools: [{ type: "function", name: "weather", parameters, strict: false }] });
check("responses: the call", response.output[0].type === "function_call" && JSON.parse(response.output[0].arguments).city === "Zürich", response);

const stranger = new OpenAI({ baseURL: process.env.SPILLWAY_BASE_URL, apiKey: "sk-no", maxRetries: 0 });
await refused("wrong key", 401, "invalid_api_key", () => stranger.chat.completions.create({ model, messages }));
await refused("unknown model", 404, "model_not_found", () => client.chat.completions.create({ model: "no-such-model", messages }));
await refused("bad field", 400, "invalid_request", () => client.chat.completions.create({ model, messages, temperature: "hot" }));
await refused("endpoint not served", 404, "endpoint_not_served", () => client.embeddings.create({ model: native, input: "a" }));
const flaky = [{ role: "user", content: `fail once node ${process.env.SPILLWAY_ROUTE}` }];
const again = await client.chat.completions.create({ model, messages: flaky }, { maxRetries: 10 });
check("retries", again.choices[0].message.content === `You said: ${flaky[0].content}`, again);

if (failures > 0) {
  console.error(`${failures} checks failed with openai ${version} for Node`);
  process.exit(1);
}
console.log(`ok      openai ${version} for Node: chat, stream, tools, structured output, embeddings, responses, errors, retries`);
