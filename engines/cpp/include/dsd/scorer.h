/* The scorer for C, and for every language that can call it.

   Who owns what:
   - Whatever you pass in stays yours. It is read during the call alone, never kept.
   - Whatever is written goes to memory that you provide, of the size a function's comment states.
     No function returns memory to be freed, but for the scorer.
   - A dsd_scorer belongs to whom opened it, and dsd_close ends it. Several threads may use one at
     once; none may use it while, or after, it is closed.
   - Where a function fails, it says why in `error`, which may be NULL, and leaves its other outputs
     as they are or partly written.
   - Nothing here throws, exits, prints, or keeps state outside of a scorer.
   - Loading the library sets ORT_DISABLE_TELEMETRY=1, unless the environment has a value for it:
     ONNX Runtime 1.32 reports to its maker otherwise. */
#ifndef DSD_SCORER_H
#define DSD_SCORER_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define DSD_API __attribute__((visibility("default")))
#else
#define DSD_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum dsd_status {
    DSD_OK = 0,
    DSD_INPUT = 1,  /* what was passed: no texts, a text that is not UTF-8, an unknown level */
    DSD_BUNDLE = 2, /* missing, incomplete, altered, or of a schema this version does not know */
    DSD_IMAGE = 3,  /* an image cannot be decoded */
    DSD_ENGINE = 4, /* no GPU, no plan, a graph refused, or numbers that are not finite */
    DSD_OTHER = 5   /* memory ran out, or the like */
} dsd_status;

typedef struct dsd_error {
    dsd_status status;
    char message[512]; /* UTF-8, ends at 0, cut where it is longer */
} dsd_error;

/* Which of a bundle's scorers: one pass through the U-Net per pair and level, or one walk per image
   and level that all texts are matched with. Their scores are not comparable. */
typedef enum dsd_mode {
    DSD_AUTO = 0, /* the one that the adapter was trained for; pair for both, and without one */
    DSD_PAIR = 1,
    DSD_MATRIX = 2
} dsd_mode;

typedef struct dsd_options {
    int threads;             /* of ONNX Runtime; 0 is one a physical core */
    double memory_budget_mb; /* for activations; 0 is 1024; TensorRT's plans have their own */
    int no_self_check;       /* 0: graphs compute the items that the bundle has results of when they
                                are opened. Otherwise damage that hashes do not show scores wrong
                                numbers. */
    const char *device;      /* "cpu", "cuda" (CUDA device 0) or "cuda:N"; NULL is the CPU with ONNX
                                Runtime, and with TensorRT the CUDA device that is current in the
                                thread. One that cannot be used is DSD_ENGINE, never replaced by
                                another. */
    dsd_mode mode;           /* DSD_INPUT where the bundle has no such scorer, or the library was
                                built for TensorRT and this is matrix mode. Callers compiled before
                                this field was there compile again. */
} dsd_options;

/* An image, in one of three forms. */
typedef struct dsd_image {
    const char *path;               /* a JPEG or PNG file, or NULL */
    const void *data;               /* where path is NULL: a JPEG or PNG file's bytes, or pixels */
    size_t size;                    /* of data, in bytes */
    size_t height, width, channels; /* of pixels, rows without gaps, 8 bits a channel: 1 grey,
                                       3 RGB, 4 RGBA; all 0 where data is a file's bytes */
} dsd_image;

typedef struct dsd_scorer dsd_scorer;

/* Opens a bundle's folder and verifies it whole. `options` may be NULL. */
DSD_API dsd_status dsd_open(const char *bundle, const dsd_options *options, dsd_scorer **scorer,
                            dsd_error *error);

/* NULL is fine. */
DSD_API void dsd_close(dsd_scorer *scorer);

/* The mode of its scores, DSD_PAIR or DSD_MATRIX. */
DSD_API dsd_mode dsd_mode_of(const dsd_scorer *scorer);

/* Tokens in a padded text, and the side in pixels of the square that images are stretched to. */
DSD_API size_t dsd_max_length(const dsd_scorer *scorer);
DSD_API size_t dsd_resolution(const dsd_scorer *scorer);

/* 1 where scores over these levels (NULL and 0 is all of the bundle's) have match probabilities.
   0 where none were fitted for the bundle, or for some of its levels alone, or a level is unknown:
   dsd_score then writes NaN. `dsd-trt calibrate` fits them. */
DSD_API int dsd_has_probability(const dsd_scorer *scorer, const double *levels, size_t level_count);

/* Scores every image against every text, UTF-8 strings with a word each.

   `levels` are the noise levels to average over, among the bundle's; NULL and 0 is all of them.
   `scores` and `probabilities`, which may be NULL, have room for image_count * text_count floats,
   an image's after the other. `probabilities` are NaN where there is no score, and all of them
   where dsd_has_probability is 0. `image_errors`, which may be NULL, has room for image_count:
   DSD_OK where the image's row has no NaN; DSD_IMAGE where it cannot be decoded, so all of its row
   is NaN; DSD_ENGINE where the engine computed no finite number of the image, of a text or of both.
   Then the scores that are NaN say which, and the message is that of the first. None of this makes
   the call fail. */
DSD_API dsd_status dsd_score(const dsd_scorer *scorer, const dsd_image *images, size_t image_count,
                             const char *const *texts, size_t text_count, const double *levels,
                             size_t level_count, float *scores, float *probabilities,
                             dsd_error *image_errors, dsd_error *error);

/* One of the best: a text of an image, or an image of a text. */
typedef struct dsd_found {
    size_t index; /* among the texts, or images, that were passed; SIZE_MAX where there is none */
    float score, probability; /* as of dsd_score */
} dsd_found;

/* What a search took. */
typedef struct dsd_search {
    size_t passes;        /* through the U-Net, walks included */
    size_t walks;         /* of them, to make lists */
    size_t lists;         /* 0: every candidate was scored at the first level */
    size_t audits;        /* of them, lists that were scored whole */
    size_t failed_audits; /* of them, those that would have lost one of the best */
    char warning[512];    /* what to do where lists lose more than was accepted, or empty */
} dsd_search;

/* Finds the `top_k` best texts of each image, or images of each text, without scoring all at every
   level. `accepted` is the accepted probability that an image, or text, loses one of them, at most
   a half; 0 is 0.01. In matrix mode it is DSD_INPUT.

   `found` has room for top_k entries of every image, or text, one's after the other, best first; of
   equal scores the first passed leads. `search`, which may be NULL, is what it took. The other
   arguments are those of dsd_score. The matrix scorer of a bundle with lists is opened when it is
   first needed. */
DSD_API dsd_status dsd_best_texts(const dsd_scorer *scorer, const dsd_image *images,
                                  size_t image_count, const char *const *texts, size_t text_count,
                                  const double *levels, size_t level_count, size_t top_k,
                                  double accepted, dsd_found *found, dsd_search *search,
                                  dsd_error *image_errors, dsd_error *error);
DSD_API dsd_status dsd_best_images(const dsd_scorer *scorer, const dsd_image *images,
                                   size_t image_count, const char *const *texts, size_t text_count,
                                   const double *levels, size_t level_count, size_t top_k,
                                   double accepted, dsd_found *found, dsd_search *search,
                                   dsd_error *image_errors, dsd_error *error);

/* What the text encoder is fed: `ids` and `mask`, which may be NULL, have room for
   dsd_max_length() numbers. `words`, which may be NULL: how many tokens the text has without BOS
   and EOS; one with more than dsd_max_length() - 2 is cut. */
DSD_API dsd_status dsd_tokenize(const dsd_scorer *scorer, const char *text, int32_t *ids,
                                float *mask, size_t *words, dsd_error *error);

/* What the image encoder is fed: `pixels` has room for 3 * dsd_resolution()^2 bytes, RGB. */
DSD_API dsd_status dsd_preprocess(const dsd_scorer *scorer, const dsd_image *image, uint8_t *pixels,
                                  dsd_error *error);

#ifdef __cplusplus
}
#endif

#endif
