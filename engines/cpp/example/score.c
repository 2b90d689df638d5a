/* Scores one image against one text: dsd-score-c BUNDLE IMAGE TEXT [DEVICE]
   Prints the score, and the match probability where one was fitted for the bundle.
   DEVICE is cpu, which is the default, cuda or cuda:N. */
#include <stdio.h>

#include "dsd/scorer.h"

int main(int argc, char **argv) {
    dsd_scorer *scorer = NULL;
    dsd_options options = {0};
    dsd_error error, image_error;
    dsd_image image = {0};
    float score = 0, probability = 0;
    int status = 2;

    if (argc != 4 && argc != 5) {
        fprintf(stderr, "usage: dsd-score-c BUNDLE IMAGE TEXT [DEVICE]\n");
        return status;
    }
    image.path = argv[2];
    options.device = argc == 5 ? argv[4] : NULL;
    if (dsd_open(argv[1], &options, &scorer, &error) != DSD_OK ||
        dsd_score(scorer, &image, 1, (const char *const *)&argv[3], 1, NULL, 0, &score,
                  &probability, &image_error, &error) != DSD_OK) {
        fprintf(stderr, "error: %s\n", error.message);
    } else if (image_error.status != DSD_OK) {
        fprintf(stderr, "%s: %s\n", argv[2], image_error.message);
        status = 3;
    } else {
        printf("%.9g", score);
        if (dsd_has_probability(scorer, NULL, 0)) printf(" %.9g", probability);
        printf("\n");
        status = 0;
    }
    dsd_close(scorer);
    return status;
}
