#include "dsd/scorer.hpp"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <unordered_map>
#include <utility>

#include "files.hpp"
#include "pipeline.hpp"
#include "pruned_search.hpp"

namespace dsd {

Image Image::file(std::filesystem::path path) {
    Image image;
    image.path = std::move(path);
    return image;
}

Image Image::encoded(const void *data, std::size_t size) {
    Image image;
    image.data = data ? data : "";  // null would be a path
    image.size = size;
    return image;
}

Image Image::pixels(const std::uint8_t *data, std::size_t height, std::size_t width,
                    std::size_t channels) {
    Image image;
    const bool known = channels == 1 || channels == 3 || channels == 4;
    image.data = data ? data : reinterpret_cast<const std::uint8_t *>("");
    image.height = data ? height : 0;
    image.width = width;
    image.channels = known ? channels : 2;  // 2 is refused when it is loaded
    return image;
}

struct Scorer::Parts : Pipeline {
    using Pipeline::Pipeline;
};

Scorer::Scorer(const std::filesystem::path &bundle, const Options &options)
    : parts_(std::make_unique<const Parts>(bundle, options)) {}
Scorer::~Scorer() = default;
Scorer::Scorer(Scorer &&) noexcept = default;
Scorer &Scorer::operator=(Scorer &&) noexcept = default;

namespace {

constexpr float kNone = std::numeric_limits<float>::quiet_NaN();
constexpr std::size_t kWalked = 256;  // images whose estimates are computed at once

// Of every image that lacks a score the first reason for it, its own before a text's; else empty.
std::vector<std::string> first_reasons(const std::vector<Failure> &failures, std::size_t images,
                                       const std::vector<std::string> &texts) {
    std::vector<std::string> errors(images);
    for (const bool own : {true, false}) {
        for (const Failure &failure : failures) {
            if (failure.image.has_value() != own) continue;
            const std::size_t first = failure.image.value_or(0);
            const std::size_t end = own ? first + 1 : images;
            const std::string named = failure.text ? "'" + texts[*failure.text] + "': " : "";
            for (std::size_t image = first; image < end; ++image) {
                if (errors[image].empty()) errors[image] = named + failure.reason;
            }
        }
    }
    return errors;
}

void sort_by_image(std::vector<Failure> &failures) {
    std::stable_sort(failures.begin(), failures.end(),
                     [](const Failure &a, const Failure &b) { return a.image < b.image; });
}

void require_call(const Pipeline &pipeline, std::size_t images, std::size_t texts) {
    if (texts == 0) throw Error(ErrorCode::input, "there must be a text");
    if (pipeline.process != ::getpid()) {
        throw Error(ErrorCode::engine,
                    "this process was forked from the one that opened the scorer, whose threads it "
                    "lacks. Open a scorer in a process that is started anew");
    }
    require_within(kImages, images);
    require_within(kTexts, texts);
    require_within(kPairs, images * texts);
}

// The texts of a call, each distinct one encoded once.
struct CallTexts {
    std::vector<std::size_t> firsts, of_column;  // where it is first, and each column's among them
    Texts encoded, unconditional;
    std::vector<bool> known;  // with finite states
    std::vector<Failure> failures;
};

CallTexts encode_texts(const Pipeline &pipeline, const std::vector<std::string> &texts) {
    CallTexts call;
    std::vector<Tokens> tokens;
    std::unordered_map<std::string, std::size_t> places;
    for (std::size_t column = 0; column < texts.size(); ++column) {
        const auto found = places.emplace(texts[column], tokens.size());
        if (found.second) {
            tokens.push_back(pipeline.tokenize(texts[column]));
            if (tokens.back().words == 0) {
                throw Error(ErrorCode::input,
                            "a text has no words to score: '" + texts[column] + "'");
            }
            call.firsts.push_back(column);
        }
        call.of_column.push_back(found.first->second);
    }
    call.encoded = pipeline.encode(tokens);
    call.unconditional = pipeline.encode_unconditional();
    call.known = pipeline.finite_texts(call.encoded);
    for (std::size_t text = 0; text < tokens.size(); ++text) {
        if (call.known[text]) continue;
        const std::string reason = pipeline.complaint("text encoder", "states");
        call.failures.push_back({std::nullopt, call.firsts[text], ErrorCode::engine, reason});
    }
    return call;
}

// A batch of a call's images, those that are decoded.
struct CallImages {
    Bytes latents;
    std::vector<std::size_t> rows;  // which of the images each is
    std::vector<bool> usable;       // with a finite latent
    std::vector<Failure> failures;
};

CallImages encode_images(const Pipeline &pipeline, const std::vector<Image> &images,
                         std::size_t start) {
    CallImages batch;
    std::vector<std::vector<std::uint8_t>> pixels;
    const std::size_t end = std::min(start + pipeline.batch.images, images.size());
    for (std::size_t i = start; i < end; ++i) {
        try {
            pixels.push_back(pipeline.preprocess(images[i]));
            batch.rows.push_back(i);
        } catch (const Error &error) {
            batch.failures.push_back({i, std::nullopt, ErrorCode::image, error.what()});
        }
    }
    if (!pixels.empty()) batch.latents = pipeline.encode(pixels);
    batch.usable = pipeline.finite_latents(batch.latents);
    for (std::size_t row = 0; row < batch.rows.size(); ++row) {
        if (batch.usable[row]) continue;
        batch.failures.push_back({batch.rows[row], std::nullopt, ErrorCode::engine,
                                  pipeline.complaint("image encoder", "a latent")});
    }
    return batch;
}

// NaN where there is none.
std::vector<float> probabilities_of(const std::vector<float> &scores,
                                    const std::optional<Calibration> &fitted) {
    std::vector<float> probabilities(scores.size(), kNone);
    if (!fitted) return probabilities;
    std::transform(scores.begin(), scores.end(), probabilities.begin(), [&](float score) {
        // Sigmoid by tanh, which cannot overflow.
        return static_cast<float>(0.5 + 0.5 * std::tanh((fitted->a * score + fitted->b) / 2));
    });
    return probabilities;
}

// The best of some candidates, whose places in the call are `places`.
std::vector<Found> best_first(const std::vector<float> &scores,
                              const std::vector<std::size_t> &places, std::size_t top_k,
                              const std::optional<Calibration> &fitted) {
    std::vector<std::size_t> order;
    for (std::size_t i = 0; i < scores.size(); ++i) {
        if (!std::isnan(scores[i])) order.push_back(i);
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
    order.resize(std::min(top_k, order.size()));
    const std::vector<float> probabilities = probabilities_of(scores, fitted);
    std::vector<Found> found;
    for (std::size_t i : order) found.push_back({places[i], scores[i], probabilities[i]});
    return found;
}

// What a search found.
struct FoundScores {
    std::vector<float> scores;  // NaN for candidates that were dropped
    std::vector<bool> lost;     // candidates that the engine gave no finite score
};

// The searches of one call, and what they take. Candidates are pairs, as many in each.
class Searches {
  public:
    // `lists` are those of the bundle that apply, or null.
    Searches(const Pipeline &pipeline, const CallTexts &texts, const Lists *lists,
             const std::map<std::size_t, Measured> *kind, std::vector<std::int32_t> levels,
             std::size_t top_k, double error)
        : pipeline_(pipeline),
          texts_(texts),
          levels_(std::move(levels)),
          pruned_(levels_.size(), top_k, error, lists, kind, pipeline.batch.passes) {}

    std::size_t together(std::size_t candidates) const { return pruned_.together(candidates); }
    bool has_lists(std::size_t candidates) const { return pruned_.has_lists(candidates); }

    // Makes some searches together. `pairs` are (searches, candidates), and so are `estimates`,
    // which only lists take.
    std::vector<FoundScores> find(const Bytes &latents, const std::vector<Pair> &pairs,
                                  std::size_t searches, const std::vector<float> &estimates) {
        const std::size_t candidates = pairs.size() / searches;
        std::vector<FoundScores> found(searches, {{}, std::vector<bool>(candidates)});
        std::vector<Search> begun = pruned_.begin(searches, candidates, estimates);
        answer_together(begun, [&](const std::vector<std::size_t> &some, std::size_t level) {
            std::vector<Pair> wanted;
            for (std::size_t search : some) {
                for (std::size_t it : begun[search].request().candidates) {
                    wanted.push_back(pairs[search * candidates + it]);
                }
            }
            std::vector<float> scores = pipeline_.score(
                latents, texts_.encoded, texts_.unconditional, wanted, {levels_[level]});
            passes_ += wanted.size();
            auto score = scores.begin();
            for (std::size_t search : some) {
                for (std::size_t it : begun[search].request().candidates) {
                    if (std::isnan(*score++)) found[search].lost[it] = true;
                }
            }
            return scores;
        });
        for (std::size_t i = 0; i < searches; ++i) {
            pruned_.note(begun[i]);
            found[i].scores = begun[i].means();
        }
        return found;
    }

    // Estimates of the scores of some images with some texts, image after image.
    std::vector<float> estimates(const Bytes &latents, const std::vector<Pair> &pairs,
                                 std::size_t images) {
        const std::size_t matched = pipeline_.batch.matched, texts = pairs.size() / images;
        walks_ += images * ((texts + matched - 1) / matched);
        return pipeline_.score_matrix(latents, texts_.encoded, pairs,
                                      {pipeline_.bundle.lists->level});
    }

    void count(Best &best) const {
        const Audits &audits = pruned_.audits();
        best.passes = passes_ + walks_;
        best.walks = walks_;
        best.lists = audits.lists();
        best.audits = audits.audits();
        best.failed_audits = audits.failures();
        best.warning = audits.warning();
    }

  private:
    const Pipeline &pipeline_;
    const CallTexts &texts_;
    std::vector<std::int32_t> levels_;
    PrunedSearch pruned_;
    std::size_t passes_ = 0, walks_ = 0;
};

void require_search(const Pipeline &pipeline, std::size_t top_k, double error) {
    if (top_k == 0) throw Error(ErrorCode::input, "top_k must be above 0");
    if (!(0 < error && error <= 0.5)) {
        throw Error(ErrorCode::input, "error must be a probability above 0 and at most 0.5");
    }
    if (pipeline.mode == Mode::matrix) {
        throw Error(ErrorCode::input,
                    "matrix mode scores everything at once: there is nothing to prune. Take the "
                    "best of what is scored, or open the bundle in pair mode");
    }
}

// Failures of an image whose pairs with the texts in some columns were lost. Of equal texts the
// first is named; an image that lost all of several texts is named alone.
std::vector<Failure> lost_texts(const CallTexts &call, std::size_t texts, std::size_t image,
                                const std::vector<std::size_t> &columns,
                                const std::vector<bool> &lost, const std::string &reason) {
    const bool none = std::find(lost.begin(), lost.end(), false) == lost.end();
    if (none && columns.size() == texts && texts > 1) {
        return {{image, std::nullopt, ErrorCode::engine, reason}};
    }
    std::vector<Failure> failures;
    for (std::size_t i = 0; i < columns.size(); ++i) {
        const bool first = call.firsts[call.of_column[columns[i]]] == columns[i];
        if (lost[i] && first) failures.push_back({image, columns[i], ErrorCode::engine, reason});
    }
    return failures;
}

// The bundle's lists, if they apply; else null.
const Lists *lists_for(const Pipeline &pipeline, std::size_t levels) {
    const bool apply = levels == pipeline.bundle.levels.size() && Backend::has_matrix_mode();
    return apply && pipeline.bundle.lists ? &*pipeline.bundle.lists : nullptr;
}

}  // namespace

Matrix Scorer::score(const std::vector<Image> &images, const std::vector<std::string> &texts,
                     const std::vector<double> &levels) const {
    const Parts &parts = *parts_;
    require_call(parts, images.size(), texts.size());
    const auto numbers = parts.level_numbers(levels);
    const CallTexts call = encode_texts(parts, texts);
    const std::size_t distinct = call.firsts.size();

    Matrix matrix{images.size(), texts.size(), {}, {}, {}, call.failures};
    matrix.scores.assign(images.size() * texts.size(), kNone);
    for (std::size_t start = 0; start < images.size(); start += parts.batch.images) {
        CallImages batch = encode_images(parts, images, start);
        const std::vector<std::size_t> &rows = batch.rows;
        std::vector<Failure> &failures = batch.failures;
        std::vector<Pair> pairs;
        for (std::size_t row = 0; row < rows.size(); ++row) {
            for (std::size_t text = 0; batch.usable[row] && text < distinct; ++text) {
                if (call.known[text]) pairs.push_back({row, text});
            }
        }
        const auto scores =
            parts.mode == Mode::matrix
                ? parts.score_matrix(batch.latents, call.encoded, pairs, numbers)
                : parts.score(batch.latents, call.encoded, call.unconditional, pairs, numbers);
        std::vector<float> by_text(rows.size() * distinct, kNone);
        std::vector<std::vector<std::size_t>> lost(rows.size());  // texts
        for (std::size_t i = 0; i < pairs.size(); ++i) {
            by_text[pairs[i].image * distinct + pairs[i].text] = scores[i];
            if (std::isnan(scores[i])) lost[pairs[i].image].push_back(pairs[i].text);
        }
        for (std::size_t row = 0; row < rows.size(); ++row) {
            for (std::size_t column = 0; column < texts.size(); ++column) {
                matrix.scores[rows[row] * texts.size() + column] =
                    by_text[row * distinct + call.of_column[column]];
            }
            if (lost[row].empty()) continue;
            const std::string reason = parts.complaint(
                parts.mode == Mode::matrix ? "matrix scorer" : "pair scorer", "a score");
            if (lost[row].size() == distinct && texts.size() > 1) {
                failures.push_back({rows[row], std::nullopt, ErrorCode::engine, reason});
                continue;
            }
            for (std::size_t text : lost[row]) {
                failures.push_back({rows[row], call.firsts[text], ErrorCode::engine, reason});
            }
        }
        sort_by_image(failures);
        matrix.failures.insert(matrix.failures.end(), failures.begin(), failures.end());
    }
    matrix.errors = first_reasons(matrix.failures, images.size(), texts);
    const bool fitted = has_probability(levels);
    matrix.probabilities =
        probabilities_of(matrix.scores, fitted ? parts.calibration() : std::nullopt);
    return matrix;
}

Best Scorer::best_texts(const std::vector<Image> &images, const std::vector<std::string> &texts,
                        std::size_t top_k, double error, const std::vector<double> &levels) const {
    const Parts &parts = *parts_;
    require_call(parts, images.size(), texts.size());
    require_search(parts, top_k, error);
    const auto numbers = parts.level_numbers(levels);
    const auto fitted = has_probability(levels) ? parts.calibration() : std::nullopt;
    const CallTexts call = encode_texts(parts, texts);
    const Lists *lists = lists_for(parts, numbers.size());
    Searches searches(parts, call, lists, lists ? &lists->texts : nullptr, numbers, top_k, error);

    Best best{};
    best.found.resize(images.size());
    best.failures = call.failures;
    std::vector<std::size_t> columns;  // the candidates
    for (std::size_t column = 0; column < texts.size(); ++column) {
        if (call.known[call.of_column[column]]) columns.push_back(column);
    }
    for (std::size_t start = 0; start < images.size(); start += parts.batch.images) {
        const CallImages batch = encode_images(parts, images, start);
        best.failures.insert(best.failures.end(), batch.failures.begin(), batch.failures.end());
        std::vector<std::size_t> usable;  // rows of the batch
        for (std::size_t row = 0; row < batch.rows.size() && !columns.empty(); ++row) {
            if (batch.usable[row]) usable.push_back(row);
        }
        for (std::size_t done = 0, count = 0; done < usable.size(); done += count) {
            count = std::min(searches.together(columns.size()), usable.size() - done);
            std::vector<Pair> pairs;  // (images, columns)
            for (std::size_t i = done; i < done + count; ++i) {
                for (std::size_t column : columns) {
                    pairs.push_back({usable[i], call.of_column[column]});
                }
            }
            std::vector<float> estimates;
            if (searches.has_lists(columns.size())) {
                estimates = searches.estimates(batch.latents, pairs, count);
            }
            const auto found = searches.find(batch.latents, pairs, count, estimates);
            for (std::size_t i = 0; i < count; ++i) {
                const std::size_t image = batch.rows[usable[done + i]];
                best.found[image] = best_first(found[i].scores, columns, top_k, fitted);
                const auto failures = lost_texts(call, texts.size(), image, columns, found[i].lost,
                                                 parts.complaint("pair scorer", "a score"));
                best.failures.insert(best.failures.end(), failures.begin(), failures.end());
            }
        }
    }
    sort_by_image(best.failures);
    best.errors = first_reasons(best.failures, images.size(), texts);
    searches.count(best);
    return best;
}

Best Scorer::best_images(const std::vector<std::string> &texts, const std::vector<Image> &images,
                         std::size_t top_k, double error, const std::vector<double> &levels) const {
    const Parts &parts = *parts_;
    require_call(parts, images.size(), texts.size());
    require_search(parts, top_k, error);
    const auto numbers = parts.level_numbers(levels);
    const auto fitted = has_probability(levels) ? parts.calibration() : std::nullopt;
    const CallTexts call = encode_texts(parts, texts);

    Best best{};
    best.found.resize(texts.size());
    best.failures = call.failures;
    Bytes latents;
    std::vector<std::size_t> places;  // of the images with a latent, the candidates
    for (std::size_t start = 0; start < images.size(); start += parts.batch.images) {
        const CallImages batch = encode_images(parts, images, start);
        best.failures.insert(best.failures.end(), batch.failures.begin(), batch.failures.end());
        const auto size = static_cast<std::ptrdiff_t>(
            batch.rows.empty() ? 0 : batch.latents.size() / batch.rows.size());
        for (std::size_t row = 0; row < batch.rows.size(); ++row) {
            if (!batch.usable[row]) continue;
            const auto first = batch.latents.begin() + static_cast<std::ptrdiff_t>(row) * size;
            latents.insert(latents.end(), first, first + size);
            places.push_back(batch.rows[row]);
        }
    }
    std::vector<std::size_t> columns, column_of(call.firsts.size());  // what has finite states
    for (std::size_t text = 0; text < call.firsts.size(); ++text) {
        column_of[text] = columns.size();
        if (call.known[text]) columns.push_back(text);
    }
    // One text alone would not pay for a walk through every image.
    const Lists *lists = columns.size() > 1 ? lists_for(parts, numbers.size()) : nullptr;
    Searches searches(parts, call, lists, lists ? &lists->images : nullptr, numbers, top_k, error);
    std::vector<float> estimated;  // (images, columns)
    const bool listed = searches.has_lists(places.size());
    for (std::size_t start = 0; listed && start < places.size(); start += kWalked) {
        const std::size_t end = std::min(start + kWalked, places.size());
        std::vector<Pair> pairs;
        for (std::size_t image = start; image < end; ++image) {
            for (std::size_t text : columns) pairs.push_back({image, text});
        }
        const auto some = searches.estimates(latents, pairs, end - start);
        estimated.insert(estimated.end(), some.begin(), some.end());
    }
    std::vector<std::size_t> sought;  // columns of texts with finite states
    for (std::size_t column = 0; column < texts.size() && !places.empty(); ++column) {
        if (call.known[call.of_column[column]]) sought.push_back(column);
    }
    for (std::size_t done = 0, count = 0; done < sought.size(); done += count) {
        count = std::min(searches.together(places.size()), sought.size() - done);
        std::vector<Pair> pairs;       // (texts, images)
        std::vector<float> estimates;  // likewise
        for (std::size_t i = done; i < done + count; ++i) {
            const std::size_t text = call.of_column[sought[i]];
            for (std::size_t image = 0; image < places.size(); ++image) {
                pairs.push_back({image, text});
                if (!listed) continue;
                estimates.push_back(estimated[image * columns.size() + column_of[text]]);
            }
        }
        const auto found = searches.find(latents, pairs, count, estimates);
        const std::string reason = parts.complaint("pair scorer", "a score");
        for (std::size_t i = 0; i < count; ++i) {
            const std::size_t column = sought[done + i];
            best.found[column] = best_first(found[i].scores, places, top_k, fitted);
            if (call.firsts[call.of_column[column]] != column) continue;
            for (std::size_t image = 0; image < places.size(); ++image) {
                if (!found[i].lost[image]) continue;
                best.failures.push_back({places[image], column, ErrorCode::engine, reason});
            }
        }
    }
    sort_by_image(best.failures);
    best.errors = first_reasons(best.failures, images.size(), texts);
    searches.count(best);
    return best;
}

bool Scorer::has_probability(const std::vector<double> &levels) const {
    return parts_->calibration() &&
           parts_->level_numbers(levels).size() == parts_->bundle.levels.size();
}

Tokens Scorer::tokenize(const std::string &text) const { return parts_->tokenize(text); }

std::vector<std::uint8_t> Scorer::preprocess(const Image &image) const {
    return parts_->preprocess(image);
}

Mode Scorer::mode() const noexcept { return parts_->mode; }

std::size_t Scorer::max_length() const noexcept {
    return static_cast<std::size_t>(parts_->bundle.max_length);
}

std::size_t Scorer::resolution() const noexcept {
    return static_cast<std::size_t>(parts_->bundle.resolution);
}

}  // namespace dsd
