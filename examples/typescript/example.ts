// Makes a video on an endpoint and prints its address: for a server, since a browser must not have the key.
//     RUNPOD_ENDPOINT_ID=… RUNPOD_API_KEY=… node --experimental-strip-types example.ts
// Node before 22.6 needs it compiled.

import type { JobState, Refusal, Request, Taken } from "./infinitetalk.ts";

declare const process: { env: Record<string, string | undefined> };

const endpoint = process.env.ENDPOINT_URL ?? `https://api.runpod.ai/v2/${process.env.RUNPOD_ENDPOINT_ID}`;
const key = process.env.RUNPOD_API_KEY ?? "local";

async function call<Answer>(method: "GET" | "POST", path: string, body?: Request): Promise<Answer> {
  const headers = { Authorization: `Bearer ${key}`, "Content-Type": "application/json" };
  const response = await fetch(`${endpoint}/${path}`, { method, headers, body: JSON.stringify(body) });
  if (!response.ok) {
    const refusal = (await response.json()) as Refusal;
    throw new Error(`${response.status}: ${refusal.error}`);
  }
  return (await response.json()) as Answer;
}

/** The address of the video, or its path on the endpoint's volume. */
async function makeVideo(request: Request): Promise<string> {
  const { id } = await call<Taken>("POST", "run", request);
  console.log(`job ${id}`);
  for (;;) {
    const job = await call<JobState>("GET", `status/${id}`);
    switch (job.status) {
      case "IN_QUEUE":
      case "IN_PROGRESS":
        await new Promise((resolve) => setTimeout(resolve, 1000));
        continue;
      case "COMPLETED":
        if (job.output.status !== "success" || !("video" in job.output)) throw new Error("the job made no video");
        return job.output.video.url ?? job.output.video.path ?? "in the result";
      case "FAILED":
        throw new Error(typeof job.error === "string" ? job.error : `${job.error.code}: ${job.error.message}`);
      default:
        throw new Error(`the job is ${job.status}`);
    }
  }
}

const video = await makeVideo({
  input: {
    prompt: "A woman talks to the camera",
    cond_video: process.env.PICTURE ?? "https://example.com/portrait.png",
    cond_audio: { person1: process.env.VOICE ?? "https://example.com/voice.wav" },
    mode: "streaming",
    output_config: { store: process.env.STORE === "volume" ? "volume" : "s3" },
  },
});
console.log(video);
export {};
