//! What the guide knows: one entry per topic, with the ways people ask about it and the one answer it gives.
//! Invariant: every answer is true of Spillway, names commands and files exactly as they are, and is plain ASCII
//! (the corpus plants typing errors byte by byte). A `held` question is never trained on; `eval` asks it.

/// One thing the guide can explain.
pub struct Topic {
    /// Whole questions that are trained on, lower case.
    pub asked: &'static [&'static str],
    /// Names of the thing, to be set into the corpus's question forms; empty for small talk.
    pub names: &'static [&'static str],
    /// Whole questions kept out of training, to measure with.
    pub held: &'static [&'static str],
    /// The answer, word for word.
    pub answer: &'static str,
}

/// Everything that is taught, apart from [`OFF_TOPIC`].
#[rustfmt::skip] // One line for each field: the whole reads as a table.
pub const TOPICS: &[Topic] = &[
    Topic {
        asked: &["what does this software do?", "what is this all about?", "what is this for?", "why should i use spillway?", "what problem does it solve?", "tell me about the project"],
        names: &["spillway", "this network", "this project", "the spillway network"],
        held: &["so what does spillway do?"],
        answer: "Spillway is a peer-to-peer market for inference. Your programs talk to your own node, jobs run on your own hardware first, and what does not fit spills over to other people's GPUs. Idle hardware earns credits.",
    },
    Topic {
        asked: &["what happens when my server is full?", "where do requests go when my gpu is busy?", "how does overflow work?", "what if i get more requests than i can serve?", "what happens under high load?", "when does a job leave my machine?"],
        names: &["spill-over", "spillover", "spill over", "the overflow", "spilling over"],
        held: &["where do jobs go when my server is busy?"],
        answer: "Spill-over means that a job leaves for the network when your own hardware is full. Your own machine is always tried first, and the job spills only while it has work waiting. You pay only for the jobs that spilled.",
    },
    Topic {
        asked: &["how is the money split?", "who gets what share?", "how much does the provider get?", "what share do i earn?", "how are earnings divided?", "how much do i keep?", "where do the 30 percent go?"],
        names: &["the 70/30 split", "the 70 30 split", "the revenue split", "the split"],
        held: &["how much of the money does the provider keep?"],
        answer: "The ledger splits every paid job. At least 70 percent goes to the provider who did the work. The other 30 percent is shared by the gateway that brought the job, the validators, and the treasury that pays for relays.",
    },
    Topic {
        asked: &["how do i earn?", "how can i make money?", "how do i get paid?", "can i earn with my gpu?", "how do i earn credits?", "how do i sell my idle gpu?", "how do i become a provider?", "how do i earn money with my hardware?"],
        names: &["earning", "earning credits", "providing"],
        held: &["how can i earn with my hardware?"],
        answer: "You earn by serving other people's jobs. Set a price per million units in `[provide]` of `spillway.toml` and start the node with `spillway up`. At least 70 percent of each job you serve is credited to your account.",
    },
    Topic {
        asked: &["how do i run a node?", "how do i start?", "how do i start a node?", "what command starts the node?", "how do i get going?", "how do i set up a node?", "how do i join the network?"],
        names: &["running a node", "the start command", "the setup", "spillway up"],
        held: &["which command do i use to start a node?"],
        answer: "Run `spillway init` once: it writes your keys and a commented `spillway.toml`. Then run `spillway up`. The node finds the others by itself and serves the OpenAI API on your own machine.",
    },
    Topic {
        asked: &["where is the configuration?", "how do i configure it?", "where are the settings?", "how do i change a setting?", "which file holds the settings?"],
        names: &["spillway.toml", "the config file", "the configuration", "spillway init"],
        held: &["how do i change the configuration?"],
        answer: "A node is configured in one file, `spillway.toml`. Run `spillway init` to write it with a comment on every field, edit it, and start the node again with `spillway up`.",
    },
    Topic {
        asked: &["how do i try it?", "can i see it work?", "is there a demo?", "how do i test it on my machine?", "what is the fastest way to try it?", "show me how it works"],
        names: &["the demo", "spillway demo", "the demo command"],
        held: &["what is the quickest way to see it work?"],
        answer: "Run `spillway demo`. It starts a small network of separate processes on your machine, answers, fills up, spills over, settles, and prints each step and the split. Add `--keep` to leave it running.",
    },
    Topic {
        asked: &["how do i create a key?", "how do i get an api key?", "where do i get a key?", "how do i make a new key?", "i need an api key", "how do i add a key?"],
        names: &["creating a key", "an api key", "api keys", "spillway key create"],
        held: &["how can i get a new api key?"],
        answer: "Run `spillway key create` on your node. It prints the new API key once, because only a hash of it is stored. Give the key to your client together with the base URL.",
    },
    Topic {
        asked: &["how do i revoke a key?", "how do i rotate a key?", "how do i delete a key?", "my key was leaked", "what if my key is stolen?", "how do i list my keys?"],
        names: &["key rotation", "rotating a key", "revoking a key", "spillway key revoke"],
        held: &["what do i do if a key was leaked?"],
        answer: "Run `spillway key revoke` to stop a key at once. To change it without a pause, run `spillway key rotate`: the old and the new secret both work for a while. `spillway key list` shows every key.",
    },
    Topic {
        asked: &["which api does it speak?", "is it openai compatible?", "can i use the openai client?", "what base url do i set?", "how do i connect my client?", "how do i use it from python?", "how do i change my code?"],
        names: &["the api", "the openai api", "the base url", "the endpoint"],
        held: &["which base url does my client need?"],
        answer: "Spillway speaks the OpenAI API. Set the base URL of your client to `http://127.0.0.1:8080/v1` and use a key from `spillway key create`. Nothing else in your code has to change.",
    },
    Topic {
        asked: &["how do i stream answers?", "does streaming work?", "can i get tokens one by one?", "how does a stream end?"],
        names: &["streaming", "token streaming", "server-sent events", "a stream"],
        held: &["can i stream the tokens?"],
        answer: "Set `stream` to true and read the server-sent events as the tokens arrive. A stream never ends silently: the last event is `[DONE]` or an error. It costs the same as an answer in one piece.",
    },
    Topic {
        asked: &["is my prompt private?", "can peers read my prompts?", "who can see my data?", "is it safe to send secrets?", "can a provider read my text?", "is my data safe?"],
        names: &["privacy", "prompt privacy", "data privacy", "confidentiality"],
        held: &["who is able to read my prompts?"],
        answer: "Traffic between nodes is encrypted, but the provider that runs a job can read its prompt. Do not send secrets to strangers. Label such a request `own` and it never leaves your own hardware.",
    },
    Topic {
        asked: &["how do i keep a job at home?", "how do i keep a prompt on my own hardware?", "how do i forbid the network?", "can i stop a job from leaving?", "how do i keep data local?"],
        names: &["the own label", "the label own", "labels", "a label"],
        held: &["how do i keep a request on my own machine?"],
        answer: "Use the label `own`. A job with this label runs on your own hardware or not at all: when there is no room, it is refused and never sent to the network. You can set it on a key or on one request.",
    },
    Topic {
        asked: &["how does it choose a provider?", "how are requests routed?", "which provider gets my job?", "how does routing work?", "how does it choose a peer?", "who will run my job?"],
        names: &["the router", "routing", "provider selection", "peer selection"],
        held: &["how is a provider chosen?"],
        answer: "The router first drops every provider that breaks your limits. It then compares the rest by predicted time to the first token and by price, asks a few of them for a binding quote, and takes the best.",
    },
    Topic {
        asked: &["why did my job go there?", "why did my job spill?", "why was my job refused?", "how do i see what a job cost?", "where did my request go?", "what is a reason code?"],
        names: &["spillway explain", "reason codes", "a reason code", "the explain command"],
        held: &["how do i find out why my job went there?"],
        answer: "Run `spillway explain` with the job's number. It shows where the job went, why, and what it cost. The reason is a short code such as `own_free`, `own_saturated` or `price_cap`.",
    },
    Topic {
        asked: &["how are payments made?", "how do payments work?", "how do i pay for a job?", "when do i pay?", "how is a stream paid for?"],
        names: &["vouchers", "a voucher", "payment vouchers", "payments", "payment"],
        held: &["what does a voucher do?"],
        answer: "A voucher is a signed promise to pay. While an answer streams, the consumer signs one after another, each for the whole sum so far, and the highest one counts. Only that one goes to the ledger.",
    },
    Topic {
        asked: &["how do i prove a job?", "how do i see a receipt?", "what is stored about a job?", "what does a receipt contain?", "what proof do i get?"],
        names: &["receipts", "a receipt", "the receipt", "job receipts"],
        held: &["what is in a receipt?"],
        answer: "A receipt is the record of one finished job, signed by both sides. It holds the model, the units, the price and the cost, with hashes in place of the text. Read it with `spillway ledger receipt`.",
    },
    Topic {
        asked: &["why is there a deposit?", "what is locked at the start?", "how does a deposit work?", "do i get my deposit back?"],
        names: &["a session", "sessions", "the deposit", "a deposit"],
        held: &["is the deposit returned?"],
        answer: "A session is a deposit between one consumer and one provider that many jobs share. The ledger locks it at the start, pays the provider out of it, and gives back what is left at the end.",
    },
    Topic {
        asked: &["where is the money recorded?", "how are the books kept?", "what does the ledger record?", "is it a blockchain?", "who keeps the books?"],
        names: &["the ledger", "a ledger", "the books", "the chain"],
        held: &["what is written in the ledger?"],
        answer: "The ledger is a chain of signed entries that records deposits, payments and the split. Tokens are paid for by vouchers outside of it, so it sees only a few entries for each session.",
    },
    Topic {
        asked: &["how do i check the ledger?", "how do i check the books?", "how do i audit the ledger?", "can i verify the payments?", "how do i know the books are right?"],
        names: &["spillway ledger verify", "ledger verify", "verifying the ledger", "the ledger check"],
        held: &["how can i verify the books?"],
        answer: "Run `spillway ledger verify`. It replays every block from the first one, checks each signature and hash, and confirms that no credit appeared or vanished. It needs only the files.",
    },
    Topic {
        asked: &["how do i see my balance?", "how much have i earned?", "where do i see my earnings?", "how many credits do i have?", "how do i see my payments?"],
        names: &["the balance", "my balance", "spillway ledger balance", "my account"],
        held: &["where can i look up my balance?"],
        answer: "Run `spillway ledger balance` to see your credits, and `spillway ledger log` to see the entries behind them. Add `--json` to either one to use it in a script.",
    },
    Topic {
        asked: &["how do i cash out?", "can i withdraw?", "how do i get my money out?", "how do i redeem credits?", "how do i turn credits into money?"],
        names: &["cashing out", "a payout", "payouts", "spillway ledger redeem"],
        held: &["how can i withdraw my credits?"],
        answer: "Run `spillway ledger redeem` to ask for a payout. The credits are locked until the issuer has paid them out or rejected the request. You can also spend what you earned on your own jobs.",
    },
    Topic {
        asked: &["what is a credit worth?", "what do i pay with?", "what currency is used?", "what is a micro-credit?"],
        names: &["credits", "a credit", "micro-credits", "the currency"],
        held: &["how much is one credit worth?"],
        answer: "Credits are what jobs are paid with. The issuer prices one credit like one US dollar. Sums are counted in micro-credits, a millionth of a credit, so that small jobs can be paid exactly.",
    },
    Topic {
        asked: &["how do i set a price?", "how are prices set?", "who sets the price?", "where do i set my price?", "how do i change my price?"],
        names: &["the price", "pricing", "prices", "setting a price"],
        held: &["where do i change my price?"],
        answer: "Each provider sets its own price, in credits per million units. Write it in `[provide]` of `spillway.toml` and start the node with `spillway up`. Your signed offer carries it to the network.",
    },
    Topic {
        asked: &["what is on offer?", "how do i see the providers?", "how do i compare prices?", "which providers are there?", "what models are on the network?", "how do i list models?"],
        names: &["the market", "spillway market", "the model list", "spillway models"],
        held: &["how do i see what is on offer?"],
        answer: "Run `spillway market` to see what is on offer: the price, latency, uptime and reputation of each provider. `spillway models` lists the models that your node can reach.",
    },
    Topic {
        asked: &["how does a provider announce itself?", "how long is an offer valid?", "what does a provider publish?", "how do others learn my price?"],
        names: &["an offer", "offers", "a signed offer", "the catalogue"],
        held: &["what does an offer contain?"],
        answer: "An offer is a signed note in which a provider lists its models, prices and limits. It is sent again every minute and expires after three, so a provider that is gone soon disappears from the market.",
    },
    Topic {
        asked: &["how do peers find each other?", "how does discovery work?", "is there a central server?", "how do nodes connect?", "how does my node find others?"],
        names: &["discovery", "peer discovery", "the peer-to-peer network", "libp2p"],
        held: &["how do the nodes find one another?"],
        answer: "Nodes find each other over libp2p, with no central server. They start from a bootstrap address and learn of others through Kademlia, through gossip, and on a local network through mDNS.",
    },
    Topic {
        asked: &["can i use my own server?", "how do i connect vllm?", "does it work with ollama?", "how do i use llama.cpp with it?", "can i point it at sglang?", "how do i add my own model server?"],
        names: &["a backend", "backends", "my own server", "an inference server"],
        held: &["how do i connect my vllm server?"],
        answer: "A backend is any server with the OpenAI API, such as vLLM, SGLang, llama.cpp or Ollama. Name its URL in `spillway.toml`. The node finds its models, watches its health and serves them.",
    },
    Topic {
        asked: &["what engine is built in?", "can it run without a gpu?", "do i need another server?", "how do i load a gguf file?", "do i need a gpu?", "what hardware do i need?"],
        names: &["the embedded engine", "the built-in engine", "the engine", "gguf"],
        held: &["does it work without another server?"],
        answer: "The embedded engine loads a GGUF file and answers on the CPU, so a node needs no GPU and no other program. It serves many requests at once. For heavy load, connect a server such as vLLM.",
    },
    Topic {
        asked: &["what is batching?", "how are many requests served at once?", "can it serve many users at once?", "how does continuous batching work?"],
        names: &["batching", "continuous batching", "a batch"],
        held: &["how can it answer many requests at once?"],
        answer: "Continuous batching serves many requests in one pass of the model. A new request joins at any step and leaves when it is done. Each answer is the same as if it had been alone.",
    },
    Topic {
        asked: &["who are you?", "what are you?", "are you a real model?", "introduce yourself", "which model is this?", "are you chatgpt?"],
        names: &["this model", "the guide", "the guide model", "yourself"],
        held: &["what kind of model are you?"],
        answer: "I am the guide, a tiny language model that comes with Spillway. I have about two million weights and know only this project. For anything else, connect a bigger model.",
    },
    Topic {
        asked: &["how do i simulate a network?", "how do i run the simulator?", "can i test a price first?", "how do i try a policy?", "what is a scenario?"],
        names: &["the simulator", "spillway sim", "simulation", "spillway sim run"],
        held: &["how can i simulate it?"],
        answer: "The simulator runs the real market and ledger code in virtual time. Start it with `spillway sim run` and the name of a scenario. The same seed always gives the same result, so a failure can be replayed.",
    },
    Topic {
        asked: &["what if a provider goes offline?", "what happens when a provider fails?", "are requests retried?", "what if a provider dies in mid-stream?", "is my answer lost when a provider crashes?"],
        names: &["failover", "retries", "continuation", "fault handling"],
        held: &["what happens if a provider crashes?"],
        answer: "If a provider fails before the first token, the job goes to another one. After that, another provider continues from the text already delivered. You see one whole answer, and each is paid for its part.",
    },
    Topic {
        asked: &["how do i limit spending?", "can i set a budget?", "how do i stop it from spending too much?", "what happens when the budget is used up?"],
        names: &["the budget", "a budget", "budgets", "spending limits"],
        held: &["how can i limit what a key spends?"],
        answer: "Give a key a budget. The gateway reserves the worst case before a job starts and books the actual cost after it, so that many requests at once cannot overspend. An empty budget refuses the job.",
    },
    Topic {
        asked: &["can i send a job without a node?", "how do i use quic?", "how do i send one job from the command line?", "how do i submit a job?"],
        names: &["spillway submit", "the edge", "edge quic", "the submit command"],
        held: &["how do i send a job from the command line?"],
        answer: "Run `spillway submit --via` with a node's address, then `--model` and your prompt. It sends one job over QUIC from a machine that runs no node, and prints the answer as it arrives.",
    },
    Topic {
        asked: &["how do i run a local network?", "how do i start many nodes?", "how do i kill a node for a test?", "how do i test a partition?"],
        names: &["the testnet", "a testnet", "spillway testnet", "the test network"],
        held: &["how can i start a local network?"],
        answer: "Run `spillway testnet up` to start a network of real processes on your machine. `spillway testnet status` shows it, `kill`, `partition` and `heal` break and mend it, and `down` stops it.",
    },
    Topic {
        asked: &["why do i get no jobs?", "how do i debug it?", "something is broken", "it does not work", "nothing happens", "how do i find the problem?"],
        names: &["spillway doctor", "troubleshooting", "debugging", "the doctor"],
        held: &["why are there no jobs for me?"],
        answer: "Run `spillway doctor`. It checks whether you can be reached, the clock, the disk and the backends. It then tells you in plain words what is wrong and why no jobs arrive.",
    },
    Topic {
        asked: &["how fast is it?", "how do i measure the speed?", "how much time does the gateway add?", "is it slow?"],
        names: &["spillway bench", "the benchmark", "benchmarks", "performance"],
        held: &["how can i measure how fast it is?"],
        answer: "Run `spillway bench gateway` to measure what the gateway adds to a direct call. `spillway bench hop` and `spillway bench ledger` do the same for a peer hop and the books. Each figure stands beside its limit.",
    },
    Topic {
        asked: &["how do you stop cheating?", "what if a peer lies?", "can i trust a provider?", "how do i know who is good?", "what lowers a reputation?"],
        names: &["reputation", "trust", "a reputation", "the provider score"],
        held: &["how do i know that a provider is good?"],
        answer: "Each node keeps its own score of every provider it has used. A job done raises it, a stall or a disputed count lowers it, and old news fades. New providers start with small windows.",
    },
    Topic {
        asked: &["how much can i lose?", "what if a provider stops in the middle?", "what if a consumer does not pay?", "what is at risk?"],
        names: &["the window", "exposure", "the risk", "my risk"],
        held: &["how much money can i lose?"],
        answer: "You risk little. A consumer pays for the prompt and one window of tokens ahead, and a provider stops when the window is used up. Who stops early is paid only for what was delivered.",
    },
    Topic {
        asked: &["how does a provider collect its money?", "what happens at the end of a session?", "can a voucher be paid twice?", "when is the provider paid?"],
        names: &["settlement", "settling", "a settlement"],
        held: &["when does the provider get its money?"],
        answer: "To settle, a provider hands its highest voucher to the ledger. The ledger checks the signature, pays what is new, and applies the split. Settling the same voucher twice pays only once.",
    },
    Topic {
        asked: &["what does a gateway do?", "who serves the api?", "where do my requests arrive?"],
        names: &["a gateway", "the gateway", "gateways"],
        held: &["what is the job of a gateway?"],
        answer: "A gateway is a node that serves the OpenAI API to keys. It runs jobs on its own backends first, sends the rest to the network, and writes down what each key has spent.",
    },
    Topic {
        asked: &["who pays whom?", "can i be both consumer and provider?", "who is the seller?", "what roles are there?"],
        names: &["a provider", "a consumer", "providers", "consumers"],
        held: &["what roles can a node have?"],
        answer: "A consumer pays for jobs and a provider serves them. One node can be both: it earns while its hardware is idle and spends what it earned when it is busy.",
    },
    Topic {
        asked: &["do my own jobs wait for others?", "will strangers slow me down?", "who comes first on my hardware?", "do i lose my gpu to others?"],
        names: &["own work", "own jobs", "the own tier", "priority"],
        held: &["will my own jobs have to wait?"],
        answer: "Your own jobs always come first on your own hardware. Jobs from the network fill only what is idle, and own jobs on own hardware cost nothing.",
    },
    Topic {
        asked: &["how do i see where an answer came from?", "how do i see the cost of a request?", "which headers do i get?"],
        names: &["the headers", "response headers", "x-spillway-route", "x-spillway-cost"],
        held: &["which headers does an answer have?"],
        answer: "Every answer has headers that start with `x-spillway`. `x-spillway-route` says own, fleet or network, `x-spillway-provider` names who served it, and `x-spillway-cost` is the price in credits.",
    },
    Topic {
        asked: &["why do i get 401?", "why do i get 404?", "what does error 429 mean?", "what errors are there?"],
        names: &["the errors", "error codes", "error 401", "error 404"],
        held: &["what do the errors look like?"],
        answer: "Errors look like OpenAI's and name the field at fault. A wrong key gets 401, an unknown model 404, a body that is too big 413, and when there is no room you get 429 with a time to wait.",
    },
    Topic {
        asked: &["how are tokens counted?", "what is a prompt token?", "what is a unit?", "who counts the tokens?"],
        names: &["a token", "tokens", "units", "the meter"],
        held: &["who is counting the tokens?"],
        answer: "A token is a piece of a word, and prices are given per million of them. Both sides count the delivered text themselves, so a provider cannot bill for tokens that never arrived.",
    },
    Topic {
        asked: &["is it free?", "is it open source?", "can i use it at work?", "what is the license?", "who owns the code?"],
        names: &["the license", "the licence", "the source code"],
        held: &["is the code open source?"],
        answer: "Spillway is open source under the MIT and Apache 2.0 licences. You may use, change and share it, also at work. You pay only for jobs that others run for you.",
    },
    Topic {
        asked: &["what language is it written in?", "how do i build it?", "how do i compile it?", "how do i install it?"],
        names: &["the build", "rust", "the installation", "building it"],
        held: &["how can i build it myself?"],
        answer: "Spillway is written in Rust. With a Rust toolchain and a C compiler, run `cargo run --release -- demo` in the repository: it builds one program, `spillway`, and starts the demo.",
    },
    Topic {
        asked: &["how do i use several machines?", "how do my nodes share work?", "can i connect my own servers?"],
        names: &["a fleet", "the fleet", "fleets"],
        held: &["can several machines of mine share work?"],
        answer: "A fleet is all the nodes that one owner account vouches for. They prove it with a signed note, and a job can go to a fleet node before it goes to strangers.",
    },
    Topic {
        asked: &["hello", "hi", "hey there", "good morning", "hi there", "hello guide"],
        names: &[],
        held: &["good evening"],
        answer: "Hello! I am the guide. Ask me how to run a node, what spill-over is, or how the 70/30 split works.",
    },
    Topic {
        asked: &["thanks", "thank you", "that helped", "great, thanks", "thank you very much"],
        names: &[],
        held: &["thanks a lot"],
        answer: "You are welcome. Ask me anything else about Spillway.",
    },
    Topic {
        asked: &["what can i ask?", "help", "help me", "what do you know?", "what topics do you know?", "what can you do?"],
        names: &[],
        held: &["what can you tell me?"],
        answer: "You can ask me about running a node, keys, backends, prices, spill-over, routing, vouchers, receipts, the ledger, the 70/30 split, privacy, the demo and the simulator.",
    },
];

/// Questions the guide must not pretend to answer.
pub const OFF_TOPIC: &[&str] = &[
    "what is the capital of france?",
    "write a poem about cats",
    "who won the world cup?",
    "what is 17 times 23?",
    "tell me a joke",
    "how do i bake bread?",
    "translate hello to german",
    "what is the weather today?",
    "who is the president?",
    "write a python function",
    "what is the meaning of life?",
    "how tall is mount everest?",
    "recommend a movie",
    "what is photosynthesis?",
    "solve x squared equals nine",
    "who wrote hamlet?",
    "what should i eat tonight?",
    "explain quantum physics",
    "how old is the universe?",
    "sing a song",
    "what is love?",
    "how do i fix my car?",
    "what time is it?",
    "give me a recipe for soup",
    "who painted the mona lisa?",
    "summarise this article",
    "what is the stock price of apple?",
    "how do i learn the piano?",
    "tell me a story about a dragon",
    "what is the best phone?",
    "how do i lose weight?",
    "what is the speed of light?",
    "explain the french revolution",
    "write an essay about trees",
    "where is the nearest hotel?",
];

/// What it says to them.
pub const OFF_TOPIC_ANSWER: &str = "I am a tiny guide and know only Spillway. Connect a bigger model for that, or ask me about nodes, spill-over, prices or payments.";
