"""Guesses the intended field of an unknown name: by the names that other tools use, else by its spelling."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

LONGEST_NAME = 40
"""Number of characters of a name that are compared: the time of comparing spellings grows with its square."""

SPELLING_CUTOFF = 0.7
"""difflib ratio below which two names are different words; "promt" and "prompt" have 0.91, "input" and "quant" 0.6."""

MEANINGS: dict[str, str] = {
    "batch": "items jobs inputs tasks",
    "prompt": "positive_prompt description caption text_prompt",
    "negative_prompt": "negative neg_prompt n_prompt uncond_prompt",
    "cond_video": (
        "image image_url image_path image_base64 input_image ref_image ref_image_url reference_image source_image "
        "source_image_url face face_url face_image start_image cond_image picture picture_url photo photo_url portrait "
        "avatar video video_url video_path video_base64 input_video ref_video source_video source_url"
    ),
    "cond_audio": (
        "audio audio_url audio_path audio_base64 input_audio driven_audio driving_audio audios audio_paths person1 "
        "person2 sound sound_url speech_url voice voice_url wav wav_url wav_path mp3 mp3_url"
    ),
    "tts_audio": "tts tts_text text speech_text",
    "audio_type": "audio_mode multi_audio_type",
    "script": "turns schedule dialogue speaker_turns",
    "speech": "speech_gate vad voice_activity vad_filter use_vad",
    "bbox": "bboxes boxes box bounding_box bounding_boxes face_bbox face_box",
    "mask": "masks mask_url mask_image ref_target_masks",
    "regions": "speaker_regions placement auto_bbox detect_faces face_detection",
    "loras": "lora lora_path lora_paths lora_dir lora_name lora_url lora_weights",
    "recipe": "preset profile preset_name quality_preset speed_preset workflow acceleration",
    "dub": "dubbing keep inpaint paste_back lip_sync lipsync video_to_video vid2vid v2v",
    "output": "frame_rate output_fps output_size",
    "audio_mix": "mix background_audio keep_audio original_audio",
    "scene_seg": "scenes scene_detection scene_segmentation",
    "dry_run": "dryrun plan validate_only",
    "size": "resolution width height dimensions aspect_ratio video_size target_size",
    "mode": "generation_mode streaming",
    "frame_num": "frames num_frames frame_count video_length length frame_window_size chunk_size",
    "max_frame_num": "max_frames total_frames max_num_frames max_length duration duration_s seconds max_duration",
    "motion_frame": "motion_frames overlap overlap_frames num_overlap_frames",
    "sample_steps": "steps num_steps sampling_steps num_inference_steps inference_steps infer_steps",
    "sample_shift": "shift flow_shift time_shift timestep_shift",
    "sample_text_guide_scale": "cfg cfg_scale guidance guidance_scale text_guide_scale text_cfg guide_scale",
    "sample_audio_guide_scale": "audio_cfg audio_cfg_scale audio_guidance audio_guidance_scale audio_guide_scale",
    "nag": "use_nag normalized_attention_guidance normalised_attention_guidance nag_scale nag_tau nag_alpha nag_config",
    "color_correction_strength": "color_correction colour_correction colormatch color_match",
    "use_teacache": "teacache enable_teacache tea_cache",
    "teacache_thresh": "teacache_threshold tea_cache_l1_thresh rel_l1_thresh",
    "use_apg": "apg enable_apg",
    "base_seed": "seed random_seed noise_seed",
    "num_persistent_param_in_dit": "num_persistent persistent_params vram_limit",
    "offload_model": "offload cpu_offload enable_cpu_offload force_offload low_vram",
    "quant": "quantization quantisation quantize precision dtype fp8 int8",
    "output_config": "outputs output_format destination upload storage save_to",
    "store": "type kind storage destination target",
    "prefix": "path folder directory dir key key_prefix output_dir output_path",
    "video_url": "url put_url upload_url presigned_url",
    "thumbnail_url": "thumbnail thumb_url image_url",
    "preview": "hls live streaming stream",
    "endpointUrl": "endpoint endpoint_url s3_endpoint bucket_endpoint_url aws_endpoint_url url host",
    "accessId": "access_key access_key_id aws_access_key_id s3_access_key bucket_access_key_id key_id access_id",
    "accessSecret": (
        "secret secret_key secret_access_key aws_secret_access_key s3_secret_key bucket_secret_access_key access_secret"
    ),
    "bucketName": "bucket bucket_name s3_bucket aws_bucket",
    "region": "region_name aws_region s3_region aws_default_region",
    "text": "script prompt content speech",
    "human1_voice": "voice voice1 voice_id voice_name speaker human_voice",
    "human2_voice": "voice2 speaker2",
    "gate": "vad mode enabled detector",
    "from_s": "start start_s begin from at time t",
    "to_s": "end end_s until to",
    "media": "url source src path file image video audio",
    "speaker": "person name who",
    "name": "path file filename file_name lora id url",
    "scale": "strength weight multiplier alpha model_strength strength_model nag_scale guidance_scale",
    "strength": "denoise denoising_strength denoise_strength noise_strength",
    "tau": "nag_tau threshold limit",
    "alpha": "nag_alpha blend blending mix",
}
"""Our names → other tools' names for the same thing, if they differ in more than spelling."""

PLACES: dict[str, str] = {
    "s3config": 'it belongs beside "input", not inside it',
    "webhook": 'it belongs beside "input", not inside it',
    "policy": 'it belongs beside "input", not inside it',
    "input": 'send its fields directly, without an "input" within "input"',
}
"""Fields of a request that are not part of a job's input, and what to do with them."""

STORE_FIELDS = ("endpointUrl", "accessId", "accessSecret", "bucketName", "region")


def hint_for(unknown: str, known: Collection[str]) -> str:
    """Advice on an unknown field. A known field is suggested only if its meaning or spelling is near."""
    name = _plain(unknown[:LONGEST_NAME])
    if nearest := _nearest(name, known):
        return f'the nearest known one is "{nearest}"'
    if name in PLACES:
        return PLACES[name]
    if any(name in _names_of(field) for field in STORE_FIELDS):
        return 'name the job\'s own store in s3Config, beside "input"'
    return f"the known ones are {', '.join(sorted(known))}"


def _nearest(name: str, known: Collection[str]) -> str | None:
    for field in sorted(known):
        if name in _names_of(field):
            return field
    spellings = {_plain(field): field for field in known}
    near = difflib.get_close_matches(name, sorted(spellings), n=1, cutoff=SPELLING_CUTOFF)
    return spellings[near[0]] if near else None


def _names_of(field: str) -> set[str]:
    return {_plain(name) for name in [field, *MEANINGS.get(field, "").split()]}


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
