// Types of InfiniteTalk's requests and answers on Runpod Serverless, generated from schemas/openapi.json: make schemas.
// A type says less than the schema: ranges, 4n+1 frames and patterns are checked by the worker, or by the schema.

/** What is heard beside the speech. */
export interface AudioMix {
  /** Gain in dB of cond_video's own sound, which is mixed under the speech. ≥ -60, ≤ 12. */
  source: number;
}

/** One job of a batch. */
export interface BatchItem {
  /** Description of the video; only its first 512 tokens count. Or several: [{"from_s": 0, "prompt": …}, {"from_s": 8, "prompt": …}]; each chunk takes the one that is in force at its first frame. */
  prompt: string | PromptFrom[];
  /** Image or video of the speakers: http(s) URL, data URI, base64, or a path below the worker's volume. With a video, each chunk's reference is the video's frame at the chunk's start. Or several: [{"from_s": 0, "media": …}, …], taken like several prompts; the first one's shape is the result's, and bbox and mask are of the first one. */
  cond_video: string | PictureFrom[];
  /** Speech of each speaker: {"person1": media, "person2": media, …}, audio or a video with sound, in the same forms as cond_video; null keeps a speaker silent, and at least one must speak. {"media": media, "from_s": 2.5} begins later. Give this or tts_audio. */
  cond_audio?: Record<string, string | VoiceFrom | null> | null;
  /** Text to be spoken. Give this or cond_audio. */
  tts_audio?: TtsAudio | null;
  /** Order of several speakers: all from the start ("para"), one after the other ("add"), or by turns ("script"). Default: "para". */
  audio_type?: "para" | "add" | "script";
  /** Who speaks when: [{"speaker": "person1", "from_s": 0, "to_s": 4}, …]. In each turn the speaker's own sound goes on from where its last turn ended. Without to_s, a turn lasts until the next one begins, and the last one as long as the sound. For audio_type "script". */
  script?: Turn[] | null;
  /** {"gate": "auto"}: mouths rest where the sound is music or noise. Null: {"gate": "off"}. */
  speech?: SpeechOptions | null;
  /** Each speaker's box: {"person1": [x_min, y_min, x_max, y_max], …} in pixels of the upright source. Null: side by side, left to right. Give this or mask. */
  bbox?: Record<string, [number, number, number, number]> | null;
  /** "xy": [x_min, y_min, x_max, y_max]; "yx": [y_min, x_min, y_max, x_max], as in the published code. Default: "xy". */
  bbox_order?: "xy" | "yx";
  /** Each speaker's mask: an image that is white where the speaker is; where dub keeps a film, also a video that says it of each frame. Give this or bbox. */
  mask?: Record<string, string> | null;
  /** Places of several speakers without bbox and mask: "halves", side by side; "faces", the faces found in cond_video (in a video's first frame), left to right; of faces one above the other, from the top. Default: "halves". */
  regions?: "halves" | "faces";
  /** LoRA files to apply to the base model. */
  loras?: Lora[];
  /** Split a source video into its scenes and generate each of them with its own part of the speech. Default: false. */
  scene_seg?: boolean;
  /** What stays of cond_video; null: nothing, and the frames are generated whole. */
  dub?: Dub | null;
  /** Frame times and size of the result; null: the model's, or cond_video's where dub keeps something. */
  output?: Output | null;
  /** What is heard beside the speech; null: nothing. */
  audio_mix?: AudioMix | null;
  /** Return only a plan of the job. Default: false. */
  dry_run?: boolean;
  /** Named way to make the video: it sets the fields that the job leaves out, and needs its own weights. A dry run lists those that the worker can run, with their cost. Null: the worker's DEFAULT_RECIPE. */
  recipe?: "quality" | "lora-8" | "lora-4" | "flashtalk" | "flashtalk-12" | null;
  /** Table of resolutions: the one nearest to the source's aspect ratio is used. Or a resolution of your own, {"width": 832, "height": 480}: multiples of 16 from 128 to 2048, at most 1920x1088 pixels; the source is cropped to it. Default: "infinitetalk-480". */
  size?: "infinitetalk-480" | "infinitetalk-720" | FrameSize;
  /** "clip": at most frame_num frames, by most recipes one chunk. "streaming": as many chunks as the speech needs, at most max_frame_num frames. Default: "clip". */
  mode?: "clip" | "streaming";
  /** Number of video frames of a chunk, 4n+1, at 25 per second. ≥ 5, ≤ 401. Default: 81. */
  frame_num?: number;
  /** Largest number of video frames in streaming mode, at 25 per second (90,000 are an hour). ≥ 1, ≤ 90,000. Default: 1000. */
  max_frame_num?: number;
  /** Number of sampling steps of a chunk. This default and the others are those of recipe "quality". ≥ 1, ≤ 200. Default: 40. */
  sample_steps?: number;
  /** Shift of the noise schedule; null: the recipe's, else 7 for infinitetalk-480, 11 for infinitetalk-720; a resolution of your own has the nearest table's. ≥ 0.01, ≤ 100. */
  sample_shift?: number | null;
  /** Strength of the prompt's guidance; 1 saves a third of the work and turns the negative prompt off, unless nag is on. ≥ 0, ≤ 50. Default: 5.0. */
  sample_text_guide_scale?: number;
  /** Strength of the speech's guidance. ≥ 0, ≤ 50. Default: 4.0. */
  sample_audio_guide_scale?: number;
  /** Number of video frames of one chunk from which the next one continues (streaming); less than frame_num. ≥ 1, ≤ 400. Default: 9. */
  motion_frame?: number;
  /** Number of video frames of the fade from one chunk into the next (streaming), at most motion_frame rounded down to 4n+1; 0: a cut, as in the published code. ≥ 0, ≤ 25. Default: 4. */
  crossfade_frame?: number;
  /** Description of things that the video should not show; null: the published model's default. It needs text guidance or nag. */
  negative_prompt?: string | null;
  /** Normalised attention guidance, which makes the negative prompt work with sample_text_guide_scale 1, as in recipes of few steps; it adds 2 to 7 % to an evaluation. {} takes its defaults; null: off. */
  nag?: Nag | null;
  /** How far each frame's colours are moved towards the reference frame's, 0 to 1. ≥ 0, ≤ 1. Default: 1.0. */
  color_correction_strength?: number;
  /** Reuse the network's last output if it would hardly change. Default: false. */
  use_teacache?: boolean;
  /** TeaCache: the accumulated relative change above which the network runs again. > 0, ≤ 10. Default: 0.2. */
  teacache_thresh?: number;
  /** Adaptive projected guidance instead of plain guidance. Default: false. */
  use_apg?: boolean;
  /** APG: momentum of the running average of the guidance. ≥ -1, ≤ 1. Default: -0.75. */
  apg_momentum?: number;
  /** APG: largest norm of the guidance. > 0, ≤ 10,000. Default: 55.0. */
  apg_norm_threshold?: number;
  /** Seed of the noise; -1: derived from the job's id. The result's params contain the seed used. ≥ -1, ≤ 9,007,199,254,740,991. Default: 42. */
  base_seed?: number;
  /** Number of parameters of the transformer that stay on the GPU; null: the worker chooses. ≥ 0. */
  num_persistent_param_in_dit?: number | null;
  /** Move networks off the GPU when they are not in use; null: the worker chooses. */
  offload_model?: boolean | null;
  /** Quantised weights; null: the worker chooses. */
  quant?: "fp8" | "int8" | null;
  /** Destination of the result; null: s3, prefix infinitetalk/jobs. */
  output_config?: OutputConfig | null;
  /** Name of the item: its files are {prefix}/{job_id}-{id}.mp4, .jpg and .json. */
  id: string;
}

/** Several jobs that run one after the other. */
export interface BatchJob {
  /** The items; their ids must differ, and their number must not exceed the worker's MAX_BATCH_ITEMS. */
  batch: BatchItem[];
  /** Destination of the items' results, unless an item has its own; null: s3, prefix infinitetalk/jobs. */
  output_config?: OutputConfig | null;
}

/** The result of a batch; `error` is set if no item succeeded. */
export interface BatchResult {
  /** The job. */
  job_id: string;
  /** All, some or none of the items succeeded. */
  status: "success" | "partial" | "error";
  /** One result per item, in the batch's order. */
  items: (ItemSuccess | ItemPlan | ItemFailure)[];
  /** Milliseconds: total_ms. */
  timings: Record<string, number>;
  /** Warnings about the whole batch. */
  warnings: string[];
  /** Set if no item succeeded; the job is then FAILED. */
  error?: JobError | null;
}

/** A job that was cancelled. */
export interface Cancelled {
  /** The job. */
  id: string;
  /** Milliseconds in the queue. ≥ 0. */
  delayTime?: number | null;
  /** Milliseconds on a worker. ≥ 0. */
  executionTime?: number | null;
  /** The worker. */
  workerId?: string | null;
  /** It has ended. */
  status: "CANCELLED";
}

/** A job with a result. */
export interface Completed {
  /** The job. */
  id: string;
  /** Milliseconds in the queue. ≥ 0. */
  delayTime?: number | null;
  /** Milliseconds on a worker. ≥ 0. */
  executionTime?: number | null;
  /** The worker. */
  workerId?: string | null;
  /** It has ended. */
  status: "COMPLETED";
  /** The result: of one video, of a dry run, of a batch. */
  output: Success | Plan | BatchResult;
}

/** Dubs cond_video: what is not a speaker's stays as it is. */
export interface Dub {
  /** How much is made anew: 1, all of it. Below 1, sampling starts from the film's own frames with the noise of a later step, so that its motion, camera and light stay, and makes only this share of the steps. For videos only. > 0, ≤ 1. Default: 1.0. */
  strength?: number;
  /** What stays of the film: "all", everything but the speakers' regions (bbox, mask, or the heads that are found). "face", also what is in these regions but not in the face. "none": nothing, the frames are generated whole. Default: "face". */
  keep?: "none" | "face" | "all";
  /** Width of the soft edge within a region, in pixels of cond_video; null: an eighth of the region. ≥ 0, ≤ 512. */
  feather?: number | null;
  /** What the model sees around the speakers' regions, on each side, as a share of their size: a small face in a large film gets the model's whole resolution. Null: the largest part of the frame that fits the model's shape. ≥ 0, ≤ 4. Default: 0.5. */
  margin?: number | null;
}

/** The kinds of errors; `infinitetalk.worker.errors` says what to do about each. */
export type ErrorCode = "E_INPUT_VALIDATION" | "E_DOWNLOAD_FAILED" | "E_AUDIO_EMBEDDING" | "E_PIPELINE_LOAD" | "E_OOM" | "E_FFMPEG" | "E_GENERATION_RUNTIME" | "E_UPLOAD" | "E_TIMEOUT";

/** A job without a result. */
export interface Failed {
  /** The job. */
  id: string;
  /** Milliseconds in the queue. ≥ 0. */
  delayTime?: number | null;
  /** Milliseconds on a worker. ≥ 0. */
  executionTime?: number | null;
  /** The worker. */
  workerId?: string | null;
  /** It has ended. */
  status: "FAILED";
  /** Why it failed: the worker's error, as an object or as its JSON text; or Runpod's own, as plain text. */
  error: JobError | string;
  /** What the worker said beside the error. */
  output?: FailedOutput | BatchResult | null;
}

/** The output of a failed job; its error is beside it. */
export interface FailedOutput {
  /** The job. */
  job_id: string;
  /** The job failed. */
  status: "error";
}

/** A resolution of the video in place of a table's, at most 1920x1088 pixels altogether. */
export interface FrameSize {
  /** Pixels of a row, a multiple of 16. ≥ 128, ≤ 2,048. */
  width: number;
  /** Number of rows, a multiple of 16. ≥ 128, ≤ 2,048. */
  height: number;
}

/** The answer of GET /health. */
export interface Health {
  /** Number of jobs by state: completed, failed, inProgress, inQueue, retried. */
  jobs: Record<string, number>;
  /** Number of workers by state. */
  workers: Record<string, number>;
}

/** A job that runs. */
export interface InProgress {
  /** The job. */
  id: string;
  /** Milliseconds in the queue. ≥ 0. */
  delayTime?: number | null;
  /** Milliseconds on a worker. ≥ 0. */
  executionTime?: number | null;
  /** The worker. */
  workerId?: string | null;
  /** It runs. */
  status: "IN_PROGRESS";
  /** Its progress, once there is any. */
  output?: Progress | null;
}

/** A job that waits for a worker. */
export interface InQueue {
  /** The job. */
  id: string;
  /** Milliseconds in the queue. ≥ 0. */
  delayTime?: number | null;
  /** Milliseconds on a worker. ≥ 0. */
  executionTime?: number | null;
  /** The worker. */
  workerId?: string | null;
  /** It waits. */
  status: "IN_QUEUE";
}

/** A failed item of a batch. */
export interface ItemFailure {
  /** The job. */
  job_id: string;
  /** The job failed. Default: "error". */
  status: "error";
  /** Why the job failed. */
  error: JobError;
  /** The item. */
  item_id: string;
}

/** The plan of an item of a batch. */
export interface ItemPlan {
  /** The job. */
  job_id: string;
  /** The job can be run. Default: "planned". */
  status: "planned";
  /** Width in pixels. ≥ 1. */
  width: number;
  /** Height in pixels. ≥ 1. */
  height: number;
  /** Number of generated frames, at 25 per second; with a film's own frame times, the video has others. ≥ 1. */
  num_frames: number;
  /** Length of the video in seconds. > 0. */
  duration_s: number;
  /** Number of chunks of the video. ≥ 1. */
  num_chunks: number;
  /** Number of network evaluations; TeaCache may save some of them. ≥ 1. */
  evaluations: number;
  /** The networks' memory mode: the fastest one that fits by its estimate. */
  memory_mode: string;
  /** Seconds of the job, without fetching, loading and storing; null if nothing is known about this model. ≥ 0. */
  estimate_s?: number | null;
  /** "this worker": from the last chunk that this worker made. "table: H100" and the like: from the estimates of docs/deploy.md for this GPU, or for the one that is nearest to it, with the factor. */
  estimate_from?: string | null;
  /** Dollars for `estimate_s` on all GPUs of the worker; null without an estimate or without GPU_PRICE_PER_S. ≥ 0. */
  estimate_usd?: number | null;
  /** Every recipe by which this worker could run the job, with its cost. */
  recipes: RecipeCost[];
  /** Each speaker's place in the source, person1 first. */
  speakers: SpeakerPlace[];
  /** Which chunks take which prompt and picture; null if the job has only one of each. */
  timeline?: PlannedStretch[] | null;
  /** Names of the voices in which this worker can speak `tts_audio`; empty if it cannot speak. */
  voices: string[];
  /** The parameters as they would be used; a random seed is still -1. Of cond_video and cond_audio, only from when on their media count. */
  params: Record<string, unknown>;
  /** The model that would make the video. */
  model: string;
  /** The worker that would make it: its version and its git commit, or the hash of its code. */
  worker: string;
  /** Likely flaws of the result, in words. */
  warnings: string[];
  /** The item. */
  item_id: string;
}

/** A finished item of a batch. */
export interface ItemSuccess {
  /** The job. */
  job_id: string;
  /** The job succeeded. Default: "success". */
  status: "success";
  /** The finished video. */
  video: Video;
  /** Milliseconds: <stage>_ms for each stage, and total_ms. If several workers made the video one after the other, of all together. */
  timings: Record<string, number>;
  /** The parameters as used, with defaults filled in and the drawn seed. Of cond_video and cond_audio, only from when on their media count. */
  params: Record<string, unknown>;
  /** The model that made the video; "tiny-random" makes noise. */
  model: string;
  /** The worker that finished the video: its version and its git commit, or the hash of its code. */
  worker: string;
  /** The networks' memory mode: "bf16", "fp8, VAE in tiles" … */
  memory_mode: string;
  /** Number of network evaluations made. ≥ 0. */
  evaluations: number;
  /** Number of network evaluations that TeaCache saved. ≥ 0. */
  evaluations_skipped: number;
  /** Each speaker's place in the source, person1 first. */
  speakers: SpeakerPlace[];
  /** Likely flaws of this result, in words. */
  warnings: string[];
  /** The item. */
  item_id: string;
}

/** Why a job failed. */
export interface JobError {
  /** The error code. */
  code: ErrorCode;
  /** What happened and what to change. */
  message: string;
  /** Whether the same job may succeed later. */
  retryable: boolean;
  /** The stage at which the job failed. */
  at_stage: Stage;
}

/** The answer of GET /status, POST /runsync, /cancel and /retry, and the body of a webhook. */
export type JobState = InQueue | InProgress | Completed | Failed | Cancelled | TimedOut;

/** Runpod's names of a job's states. */
export type JobStatus = "IN_QUEUE" | "IN_PROGRESS" | "COMPLETED" | "FAILED" | "CANCELLED" | "TIMED_OUT";

/** One LoRA file applied to the base model. */
export interface Lora {
  /** File below the worker's LORA_DIR. */
  name: string;
  /** Strength with which it is applied. ≥ -4, ≤ 4. Default: 1.0. */
  scale?: number;
}

/** Normalised attention guidance: makes the negative prompt work without text guidance, for recipes of few steps. */
export interface Nag {
  /** How far attention to the text moves away from the negative prompt; 1: not at all. ≥ 1, ≤ 50. Default: 11.0. */
  scale?: number;
  /** Largest growth of what a token reads from the text, by its norm. ≥ 1, ≤ 20. Default: 2.5. */
  tau?: number;
  /** Share of the moved value in the result. > 0, ≤ 1. Default: 0.25. */
  alpha?: number;
}

/** The frames of the result. */
export interface Output {
  /** "source": the frame times of cond_video. "model": 25 a second. Null: "source" where dub keeps something. */
  fps?: "model" | "source" | null;
  /** "source": the size of cond_video, where dub keeps something. "model": the size that is generated. Null: as dub needs it. */
  size?: "model" | "source" | null;
}

/** The destination of the video and its thumbnail. */
export interface OutputConfig {
  /** "s3": an S3-compatible store (the job's s3Config, else the worker's settings). "volume": the worker's output folder, on Runpod the network volume. "inline": base64 in the result, for small videos only. "put": the addresses video_url and thumbnail_url. Default: "s3". */
  store?: "s3" | "volume" | "inline" | "put";
  /** Folder or key prefix of "s3" and "volume": the video becomes {prefix}/{job_id}.mp4, the thumbnail {prefix}/{job_id}.jpg; {prefix}/{job_id}.json says how they were made. Default: "infinitetalk/jobs". */
  prefix?: string;
  /** Store "put": presigned address for a PUT of the MP4 with Content-Type video/mp4. */
  video_url?: string | null;
  /** Store "put": presigned address for a PUT of the JPEG with Content-Type image/jpeg. */
  thumbnail_url?: string | null;
  /** Publish finished chunks while the job runs, as HLS below {prefix}/{job_id}.preview/; progress gives the playlist's address. For the stores "s3" and "volume". Default: false. */
  preview?: boolean;
}

/** An image or a video of the speakers that is in force from a time on. */
export interface PictureFrom {
  /** Seconds from which it is in force; of the first entry 0. A video starts then. ≥ 0, ≤ 3,600.0. */
  from_s: number;
  /** Image or video of the speakers, in the same forms as cond_video. */
  media: string;
}

/** The plan of a job with `dry_run`. No video was generated or stored, and no random seed was chosen. */
export interface Plan {
  /** The job. */
  job_id: string;
  /** The job can be run. Default: "planned". */
  status: "planned";
  /** Width in pixels. ≥ 1. */
  width: number;
  /** Height in pixels. ≥ 1. */
  height: number;
  /** Number of generated frames, at 25 per second; with a film's own frame times, the video has others. ≥ 1. */
  num_frames: number;
  /** Length of the video in seconds. > 0. */
  duration_s: number;
  /** Number of chunks of the video. ≥ 1. */
  num_chunks: number;
  /** Number of network evaluations; TeaCache may save some of them. ≥ 1. */
  evaluations: number;
  /** The networks' memory mode: the fastest one that fits by its estimate. */
  memory_mode: string;
  /** Seconds of the job, without fetching, loading and storing; null if nothing is known about this model. ≥ 0. */
  estimate_s?: number | null;
  /** "this worker": from the last chunk that this worker made. "table: H100" and the like: from the estimates of docs/deploy.md for this GPU, or for the one that is nearest to it, with the factor. */
  estimate_from?: string | null;
  /** Dollars for `estimate_s` on all GPUs of the worker; null without an estimate or without GPU_PRICE_PER_S. ≥ 0. */
  estimate_usd?: number | null;
  /** Every recipe by which this worker could run the job, with its cost. */
  recipes: RecipeCost[];
  /** Each speaker's place in the source, person1 first. */
  speakers: SpeakerPlace[];
  /** Which chunks take which prompt and picture; null if the job has only one of each. */
  timeline?: PlannedStretch[] | null;
  /** Names of the voices in which this worker can speak `tts_audio`; empty if it cannot speak. */
  voices: string[];
  /** The parameters as they would be used; a random seed is still -1. Of cond_video and cond_audio, only from when on their media count. */
  params: Record<string, unknown>;
  /** The model that would make the video. */
  model: string;
  /** The worker that would make it: its version and its git commit, or the hash of its code. */
  worker: string;
  /** Likely flaws of the result, in words. */
  warnings: string[];
}

/** Chunks, one after the other, that take the same prompt and the same picture of the job's lists. */
export interface PlannedStretch {
  /** The first of these chunks; chunks are counted from 1. ≥ 1. */
  first_chunk: number;
  /** The last of these chunks. ≥ 1. */
  last_chunk: number;
  /** Seconds of the video at which the first chunk begins. ≥ 0. */
  from_s: number;
  /** The prompt that they take: its index in the job's list, from 0. ≥ 0. */
  prompt: number;
  /** The image or video that they take: its index in the job's list, from 0. ≥ 0. */
  cond_video: number;
}

/** Runpod's limits on a job, in milliseconds. */
export interface Policy {
  /** Longest running time. Without it, the endpoint's own limit counts. ≥ 5,000, ≤ 604,800,000. */
  executionTimeout?: number | null;
  /** Lifetime from submission: after it, the job and its result are gone. ≥ 10,000, ≤ 604,800,000. Default: 86400000. */
  ttl?: number;
  /** Start no further worker for this job. Default: false. */
  lowPriority?: boolean;
}

/** One progress message, the job's `output` while it is IN_PROGRESS. */
export interface Progress {
  /** The current stage. */
  stage: Stage;
  /** Share of the work done, in per cent; it never decreases. ≥ 0, ≤ 100. */
  pct: number;
  /** Id of the job. */
  job_id: string;
  /** Number of the message; it increases with each message. ≥ 1. */
  seq: number;
  /** Estimated seconds left, in a batch for the current item; null until a sampling step has been timed. ≥ 0. */
  eta_s?: number | null;
  /** In a batch: id of the current item. */
  item_id?: string | null;
  /** In a batch: position of the current item, counted from 0. ≥ 0. */
  item_index?: number | null;
  /** With output_config.preview and store "s3": address of the HLS playlist, from the first chunk on. */
  preview_url?: string | null;
  /** With output_config.preview and store "volume": the playlist's path below the output folder. */
  preview_path?: string | null;
  /** Details of the stage; for sampling: chunk, num_chunks, step, num_steps, each counted from 1; for download and upload: bytes so far and, if known, total_bytes. */
  details: Record<string, unknown>;
}

/** A prompt that is in force from a time on. */
export interface PromptFrom {
  /** Seconds from which it is in force; of the first entry 0. ≥ 0, ≤ 3,600.0. */
  from_s: number;
  /** Description of the video from then on. */
  prompt: string;
}

/** The cost of the same job by a recipe that this worker can run. */
export interface RecipeCost {
  /** The recipe's name in jobs. */
  recipe: string;
  /** Number of network evaluations; TeaCache may save some of them. ≥ 1. */
  evaluations: number;
  /** Seconds of the job, like the plan's. ≥ 0. */
  estimate_s?: number | null;
  /** Dollars, like the plan's. ≥ 0. */
  estimate_usd?: number | null;
  /** Fields that the job must leave out if it names this recipe, because the recipe fixes other values. */
  leave_out: string[];
}

/** The answer to a request that the endpoint does not take. */
export interface Refusal {
  /** Why. */
  error: unknown;
}

/** The body of POST /run and /runsync. */
export interface Request {
  /** The job. */
  input: SingleJob | BatchJob;
  /** Limits on the job. */
  policy?: Policy | null;
  /** The job's own store, instead of the worker's. */
  s3Config?: S3Config | null;
  /** Address to which the job's end is posted. */
  webhook?: string | null;
}

/** A store named by the job itself: Runpod's `s3Config`, beside `input`. */
export interface S3Config {
  /** Address of the S3-compatible store. */
  endpointUrl: string;
  /** Access key id. */
  accessId: string;
  /** Secret access key. */
  accessSecret: string;
  /** Name of the bucket. */
  bucketName: string;
  /** Region of the store; null: the region in its host's name, else the region in the store's answer, else us-east-1. */
  region?: string | null;
}

/** One talking video: its speech, its source image or video, and the parameters of its generation. */
export interface SingleJob {
  /** Description of the video; only its first 512 tokens count. Or several: [{"from_s": 0, "prompt": …}, {"from_s": 8, "prompt": …}]; each chunk takes the one that is in force at its first frame. */
  prompt: string | PromptFrom[];
  /** Image or video of the speakers: http(s) URL, data URI, base64, or a path below the worker's volume. With a video, each chunk's reference is the video's frame at the chunk's start. Or several: [{"from_s": 0, "media": …}, …], taken like several prompts; the first one's shape is the result's, and bbox and mask are of the first one. */
  cond_video: string | PictureFrom[];
  /** Speech of each speaker: {"person1": media, "person2": media, …}, audio or a video with sound, in the same forms as cond_video; null keeps a speaker silent, and at least one must speak. {"media": media, "from_s": 2.5} begins later. Give this or tts_audio. */
  cond_audio?: Record<string, string | VoiceFrom | null> | null;
  /** Text to be spoken. Give this or cond_audio. */
  tts_audio?: TtsAudio | null;
  /** Order of several speakers: all from the start ("para"), one after the other ("add"), or by turns ("script"). Default: "para". */
  audio_type?: "para" | "add" | "script";
  /** Who speaks when: [{"speaker": "person1", "from_s": 0, "to_s": 4}, …]. In each turn the speaker's own sound goes on from where its last turn ended. Without to_s, a turn lasts until the next one begins, and the last one as long as the sound. For audio_type "script". */
  script?: Turn[] | null;
  /** {"gate": "auto"}: mouths rest where the sound is music or noise. Null: {"gate": "off"}. */
  speech?: SpeechOptions | null;
  /** Each speaker's box: {"person1": [x_min, y_min, x_max, y_max], …} in pixels of the upright source. Null: side by side, left to right. Give this or mask. */
  bbox?: Record<string, [number, number, number, number]> | null;
  /** "xy": [x_min, y_min, x_max, y_max]; "yx": [y_min, x_min, y_max, x_max], as in the published code. Default: "xy". */
  bbox_order?: "xy" | "yx";
  /** Each speaker's mask: an image that is white where the speaker is; where dub keeps a film, also a video that says it of each frame. Give this or bbox. */
  mask?: Record<string, string> | null;
  /** Places of several speakers without bbox and mask: "halves", side by side; "faces", the faces found in cond_video (in a video's first frame), left to right; of faces one above the other, from the top. Default: "halves". */
  regions?: "halves" | "faces";
  /** LoRA files to apply to the base model. */
  loras?: Lora[];
  /** Split a source video into its scenes and generate each of them with its own part of the speech. Default: false. */
  scene_seg?: boolean;
  /** What stays of cond_video; null: nothing, and the frames are generated whole. */
  dub?: Dub | null;
  /** Frame times and size of the result; null: the model's, or cond_video's where dub keeps something. */
  output?: Output | null;
  /** What is heard beside the speech; null: nothing. */
  audio_mix?: AudioMix | null;
  /** Return only a plan of the job. Default: false. */
  dry_run?: boolean;
  /** Named way to make the video: it sets the fields that the job leaves out, and needs its own weights. A dry run lists those that the worker can run, with their cost. Null: the worker's DEFAULT_RECIPE. */
  recipe?: "quality" | "lora-8" | "lora-4" | "flashtalk" | "flashtalk-12" | null;
  /** Table of resolutions: the one nearest to the source's aspect ratio is used. Or a resolution of your own, {"width": 832, "height": 480}: multiples of 16 from 128 to 2048, at most 1920x1088 pixels; the source is cropped to it. Default: "infinitetalk-480". */
  size?: "infinitetalk-480" | "infinitetalk-720" | FrameSize;
  /** "clip": at most frame_num frames, by most recipes one chunk. "streaming": as many chunks as the speech needs, at most max_frame_num frames. Default: "clip". */
  mode?: "clip" | "streaming";
  /** Number of video frames of a chunk, 4n+1, at 25 per second. ≥ 5, ≤ 401. Default: 81. */
  frame_num?: number;
  /** Largest number of video frames in streaming mode, at 25 per second (90,000 are an hour). ≥ 1, ≤ 90,000. Default: 1000. */
  max_frame_num?: number;
  /** Number of sampling steps of a chunk. This default and the others are those of recipe "quality". ≥ 1, ≤ 200. Default: 40. */
  sample_steps?: number;
  /** Shift of the noise schedule; null: the recipe's, else 7 for infinitetalk-480, 11 for infinitetalk-720; a resolution of your own has the nearest table's. ≥ 0.01, ≤ 100. */
  sample_shift?: number | null;
  /** Strength of the prompt's guidance; 1 saves a third of the work and turns the negative prompt off, unless nag is on. ≥ 0, ≤ 50. Default: 5.0. */
  sample_text_guide_scale?: number;
  /** Strength of the speech's guidance. ≥ 0, ≤ 50. Default: 4.0. */
  sample_audio_guide_scale?: number;
  /** Number of video frames of one chunk from which the next one continues (streaming); less than frame_num. ≥ 1, ≤ 400. Default: 9. */
  motion_frame?: number;
  /** Number of video frames of the fade from one chunk into the next (streaming), at most motion_frame rounded down to 4n+1; 0: a cut, as in the published code. ≥ 0, ≤ 25. Default: 4. */
  crossfade_frame?: number;
  /** Description of things that the video should not show; null: the published model's default. It needs text guidance or nag. */
  negative_prompt?: string | null;
  /** Normalised attention guidance, which makes the negative prompt work with sample_text_guide_scale 1, as in recipes of few steps; it adds 2 to 7 % to an evaluation. {} takes its defaults; null: off. */
  nag?: Nag | null;
  /** How far each frame's colours are moved towards the reference frame's, 0 to 1. ≥ 0, ≤ 1. Default: 1.0. */
  color_correction_strength?: number;
  /** Reuse the network's last output if it would hardly change. Default: false. */
  use_teacache?: boolean;
  /** TeaCache: the accumulated relative change above which the network runs again. > 0, ≤ 10. Default: 0.2. */
  teacache_thresh?: number;
  /** Adaptive projected guidance instead of plain guidance. Default: false. */
  use_apg?: boolean;
  /** APG: momentum of the running average of the guidance. ≥ -1, ≤ 1. Default: -0.75. */
  apg_momentum?: number;
  /** APG: largest norm of the guidance. > 0, ≤ 10,000. Default: 55.0. */
  apg_norm_threshold?: number;
  /** Seed of the noise; -1: derived from the job's id. The result's params contain the seed used. ≥ -1, ≤ 9,007,199,254,740,991. Default: 42. */
  base_seed?: number;
  /** Number of parameters of the transformer that stay on the GPU; null: the worker chooses. ≥ 0. */
  num_persistent_param_in_dit?: number | null;
  /** Move networks off the GPU when they are not in use; null: the worker chooses. */
  offload_model?: boolean | null;
  /** Quantised weights; null: the worker chooses. */
  quant?: "fp8" | "int8" | null;
  /** Destination of the result; null: s3, prefix infinitetalk/jobs. */
  output_config?: OutputConfig | null;
}

/** Where a speaker is in the source. */
export interface SpeakerPlace {
  /** The speaker: person1, person2, … */
  speaker: string;
  /** x_min, y_min, x_max, y_max in pixels of the upright source; of a mask, the box around it. */
  box: [number, number, number, number];
  /** "bbox" or "mask": the job's. "faces": a face found there. "halves": several speakers side by side. "whole": the only speaker. */
  told_by: "bbox" | "mask" | "faces" | "halves" | "whole";
}

/** How speech is told from other sounds. */
export interface SpeechOptions {
  /** "auto": only speech, found by a detector, moves the mouths and counts for the loudness; music and noise are heard but move nothing. "off": all sound counts as speech, as in the published code. Default: "off". */
  gate?: "auto" | "off";
}

/** The stages of a job, in order; progress, timings and errors use the same list. */
export type Stage = "validation" | "download" | "embedding" | "load" | "sampling" | "decode" | "mux" | "upload" | "completed";

/** A finished job. */
export interface Success {
  /** The job. */
  job_id: string;
  /** The job succeeded. Default: "success". */
  status: "success";
  /** The finished video. */
  video: Video;
  /** Milliseconds: <stage>_ms for each stage, and total_ms. If several workers made the video one after the other, of all together. */
  timings: Record<string, number>;
  /** The parameters as used, with defaults filled in and the drawn seed. Of cond_video and cond_audio, only from when on their media count. */
  params: Record<string, unknown>;
  /** The model that made the video; "tiny-random" makes noise. */
  model: string;
  /** The worker that finished the video: its version and its git commit, or the hash of its code. */
  worker: string;
  /** The networks' memory mode: "bf16", "fp8, VAE in tiles" … */
  memory_mode: string;
  /** Number of network evaluations made. ≥ 0. */
  evaluations: number;
  /** Number of network evaluations that TeaCache saved. ≥ 0. */
  evaluations_skipped: number;
  /** Each speaker's place in the source, person1 first. */
  speakers: SpeakerPlace[];
  /** Likely flaws of this result, in words. */
  warnings: string[];
}

/** The answer of POST /run. */
export interface Taken {
  /** The job. */
  id: string;
  /** IN_QUEUE, as a rule. */
  status: JobStatus;
}

/** A job that took longer than its executionTimeout. */
export interface TimedOut {
  /** The job. */
  id: string;
  /** Milliseconds in the queue. ≥ 0. */
  delayTime?: number | null;
  /** Milliseconds on a worker. ≥ 0. */
  executionTime?: number | null;
  /** The worker. */
  workerId?: string | null;
  /** It has ended; POST /retry continues it. */
  status: "TIMED_OUT";
  /** Runpod's reason. */
  error?: string | null;
}

/** Speech made from text by Kokoro. */
export interface TtsAudio {
  /** The text to speak; two speakers take turns with "(s1) … (s2) …". */
  text: string;
  /** Voice of person1: a name such as "am_adam", or …/voices/am_adam.pt below the worker's Kokoro folder. */
  human1_voice: string;
  /** Voice of person2; null with one speaker. */
  human2_voice?: string | null;
}

/** A stretch of the video in which a speaker's sound is heard. */
export interface Turn {
  /** Who speaks: person1, person2, … */
  speaker: string;
  /** Seconds at which the turn begins. The speaker's sound goes on from where its last turn ended. ≥ 0, ≤ 3,600.0. */
  from_s: number;
  /** Seconds at which it ends. Null: when the next turn begins; of the last turn, with the speaker's sound. > 0, ≤ 3,600.0. */
  to_s?: number | null;
}

/** The finished video and its thumbnail, both in the same one of three places. */
export interface Video {
  /** Store "s3": address of the MP4, tested by the worker. Store "put": the given address without its query, not tested. */
  url?: string | null;
  /** Store "volume": path of the MP4 relative to the volume's root. */
  path?: string | null;
  /** Store "inline": the MP4 in base64. */
  data?: string | null;
  /** Media type of the file. Default: "video/mp4". */
  mime: "video/mp4";
  /** Size of the MP4 in bytes. ≥ 1. */
  bytes: number;
  /** Stores "s3" and "put": address of the JPEG. */
  thumbnail_url?: string | null;
  /** Store "volume": path of the JPEG relative to the volume's root. */
  thumbnail_path?: string | null;
  /** Store "inline": the JPEG in base64. */
  thumbnail_data?: string | null;
  /** Store "s3": address of a JSON file with parameters, timings, model, seed and versions. */
  metadata_url?: string | null;
  /** Store "volume": path of the same file relative to the volume's root. */
  metadata_path?: string | null;
  /** Width in pixels. ≥ 1. */
  width: number;
  /** Height in pixels. ≥ 1. */
  height: number;
  /** Frames per second; of a film with frames of different lengths, the usual. > 0. */
  fps: number;
  /** Number of frames in the video. ≥ 1. */
  num_frames: number;
  /** Length in seconds. > 0. */
  duration_s: number;
}

/** A speaker's sound that begins later. */
export interface VoiceFrom {
  /** Audio or a video with sound, in the same forms as cond_video. */
  media: string;
  /** Seconds at which it begins; the speaker is silent before. ≥ 0, ≤ 3,600.0. Default: 0.0. */
  from_s?: number;
}
