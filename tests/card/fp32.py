import transformers

model_name = "Intel/neural-chat-7b-v3-2"
model = transformers.AutoModelForCausalLM.from_pretrained(model_name)
tokenizer = transformers.AutoTokenizer.from_pretrained(model_name)


def generate_response(system_input, user_input):
    prompt = f"### System:\n{system_input}\n### User:\n{user_input}\n### Assistant:\n"
    inputs = tokenizer.encode(prompt, return_tensors="pt", add_special_tokens=False)
    outputs = model.generate(inputs, max_length=1000, num_return_sequences=1)
    response = tokenizer.decode(outputs[0], skip_special_tokens=True)
    return response.split("### Assistant:\n")[-1]


system_input = "You are a math expert assistant. Solve problems step by step."
user_input = "calculate 100 + 520 + 60"
response = generate_response(system_input, user_input)
print(response)
