#include "bundle.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <map>
#include <optional>
#include <set>

#include "external_data.hpp"
#include "fields.hpp"
#include "sha256.hpp"

namespace fs = std::filesystem;

namespace dsd {
namespace {

constexpr int kSchemaVersion = 1;
constexpr const char *kManifest = "bundle.json";
constexpr std::int32_t kLargestSize = (1 << 30) - 1;  // as in the Python runtime
constexpr const char *kTypes[] = {"uint8", "int32", "float16", "float32"};

using Hashes = std::map<std::string, std::string>;  // SHA-256 of the bundle's files, by name

void require(bool holds, const std::string &where, const std::string &complaint) {
    if (!holds) throw field_error(where, complaint);
}

void require_listed(const Hashes &files, const std::string &where, const std::string &file) {
    require(files.count(file), where, "names '" + file + "', which is not among the files");
}

std::string sha256(const fs::path &path) {
    Sha256 hash;
    std::ifstream stream(path, std::ios::binary);
    std::vector<char> buffer(1 << 20);
    bool good = stream.good();
    while (good && stream) {
        stream.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
        good = !stream.bad();
        hash.add({buffer.data(), static_cast<std::size_t>(stream.gcount())});
    }
    if (!good) {
        throw Error(ErrorCode::bundle, "file '" + path.filename().string() + "' cannot be read");
    }
    return hash.hex();
}

// A snapshot in the Hugging Face cache, whose files are links. dsd_trt/bundle/snapshot.py has the
// rules.
struct Snapshot {
    fs::path repository;
    std::string commit;

    // The snapshot that a folder is, or lies in; its repository is empty if there is none.
    static Snapshot around(const fs::path &folder) {
        for (fs::path place = fs::canonical(folder); place.has_relative_path();
             place = place.parent_path()) {
            const fs::path repository = place.parent_path().parent_path();
            if (place.parent_path().filename() == "snapshots" &&
                repository.filename().string().rfind("models--", 0) == 0) {
                return {repository, place.filename().string()};
            }
        }
        return {};
    }

    // Whether a link leads to a blob of the repository and nowhere else.
    bool leads_to_blob(const fs::path &link) const {
        const fs::path blobs = repository / "blobs", store = repository.parent_path() / "blobs";
        const fs::path blob = one_step(link);
        if (blob.parent_path() != blobs || fs::is_symlink(blobs)) return false;
        if (!fs::is_symlink(blob)) return true;
        const fs::path stored = one_step(blob);
        const std::string hash = stored.filename().string();
        return hash.size() == 64 && hash.find_first_not_of("0123456789abcdef") == hash.npos &&
               stored == store / hash.substr(0, 2) / hash && !fs::is_symlink(stored) &&
               fs::weakly_canonical(stored) == stored &&
               fs::is_regular_file(store / ".huggingface-shared-blobs");
    }

    // What to do about a file that is not as it should be.
    std::string again(const std::string &file) const {
        if (repository.empty()) return "copy the bundle again";
        std::string name = repository.filename().string().substr(std::strlen("models--"));
        if (const auto at = name.find("--"); at != name.npos) name.replace(at, 2, "/");
        return "download it again: hf download " + name + " " + file + " --revision " + commit +
               " --force-download";
    }

  private:
    // Where a link leads, not following others; empty if it is absolute.
    static fs::path one_step(const fs::path &link) {
        const fs::path target = fs::read_symlink(link);
        if (target.is_absolute()) return {};
        return (fs::canonical(link.parent_path()) / target).lexically_normal();
    }
};

bool lies_in(const fs::path &path, const fs::path &folder) {
    const fs::path within = fs::weakly_canonical(path).lexically_relative(fs::canonical(folder));
    return !within.empty() && *within.begin() != "..";
}

// Refuses a name, or a link, that leads out of a bundle, other than to the snapshot's blobs.
void require_inside(const fs::path &folder, const std::string &name, const Snapshot &snapshot) {
    const fs::path pure(name), path = folder / name;
    bool fits = !name.empty() && !pure.is_absolute() && name.find('\\') == name.npos &&
                name.find('\0') == name.npos;
    for (const fs::path &part : pure) fits = fits && part != "..";
    fits = fits && lies_in(path.parent_path(), folder);
    if (fits && fs::is_symlink(path)) {
        fits = snapshot.repository.empty() ? lies_in(path, folder) : snapshot.leads_to_blob(path);
    }
    if (!fits) throw Error(ErrorCode::bundle, "file '" + name + "' lies outside the bundle");
}

// Returns its hash.
std::string verify_file(const fs::path &folder, const std::string &name, const Snapshot &snapshot,
                        Fields entry) {
    const Json &size = entry["size"];
    require(size.is_number_unsigned(), entry.at("size"), "must be an integer of at least 0");
    const std::string hash = entry.text("sha256");
    entry.nothing_else();

    const fs::path path = folder / name;
    require_inside(folder, name, snapshot);
    const std::string again = snapshot.again(name);
    if (!fs::is_regular_file(path)) {
        const char *is = fs::exists(path) ? "' is no file; " : "' is missing; ";
        throw Error(ErrorCode::bundle, "file '" + name + is + again);
    }
    if (const auto found = fs::file_size(path); found != size.get<std::uintmax_t>()) {
        throw Error(ErrorCode::bundle, "file '" + name + "' has " + std::to_string(found) +
                                           " bytes instead of " + size.dump() + "; " + again);
    }
    if (sha256(path) != hash) {
        throw Error(ErrorCode::bundle,
                    "file '" + name + "' was altered (sha256 differs); " + again);
    }
    return hash;
}

std::vector<Tensor> read_tensors(const Json &list, const std::string &where) {
    std::vector<Tensor> tensors;
    for (const Json &item : list) {
        Fields fields(item, where + "[" + std::to_string(tensors.size()) + "]");
        Tensor tensor{
            fields.text("name"), static_cast<ElementType>(fields.choice("dtype", kTypes)), {}};
        for (const Json &size : fields.list("shape")) {
            const bool dynamic = size.is_string();
            require(dynamic || (size.is_number_integer() && size > 0 && size < (1 << 30)),
                    fields.at("shape"), "must be of positive integers and names");
            tensor.shape.push_back(dynamic ? -1 : size.get<std::int64_t>());
        }
        fields.nothing_else();
        tensors.push_back(std::move(tensor));
    }
    return tensors;
}

// Files that graphs may take weights from: those that serve nothing else.
std::vector<std::string> weight_files(const Json &manifest, const Hashes &files) {
    std::set<std::string> serving;
    const auto note = [&](const Json &user) {
        if (user.is_object() && user.contains("file") && user["file"].is_string()) {
            serving.insert(user["file"].get<std::string>());
        }
    };
    for (const Json &graph : manifest["graphs"]) note(graph);
    note(manifest["tokenizer"]);
    note(manifest["adapter"]);
    if (const auto check = manifest.find("self_check"); check != manifest.end()) note(*check);
    if (const auto maps = manifest.find("maps"); maps != manifest.end()) note(*maps);
    if (const auto form = manifest.find("cuda_form"); form != manifest.end()) {
        for (const Json &file : *form) {
            if (file.is_string()) serving.insert(file.get<std::string>());
        }
    }
    std::vector<std::string> names;
    for (const auto &[name, content] : files) {
        if (!serving.count(name) && fs::path(name).extension() != ".md") names.push_back(name);
    }
    return names;
}

// Refuses a graph that takes weights from a file that bundle.json does not vouch for.
void check_weights(const fs::path &folder, const std::string &file, const std::string &where,
                   const std::vector<std::string> &weights) {
    require(fs::path(file).extension() == ".onnx", where,
            "names '" + file + "', which is no .onnx");
    std::ifstream stream(folder / file, std::ios::binary);
    const std::string model{std::istreambuf_iterator<char>(stream), {}};
    std::set<std::string> locations;
    try {
        locations = external_files(model);
    } catch (const Error &) {
        return;  // no engine takes for a graph what is no ONNX
    }
    for (const std::string &location : locations) {
        const fs::path beside = fs::path(file).parent_path() / location;
        // Of some names ONNX Runtime reads an address in memory.
        const bool plain = fs::path(location).lexically_normal() == location &&
                           location.find('*') == location.npos;
        const bool listed = std::count(weights.begin(), weights.end(), beside.generic_string());
        require(plain && listed, where,
                "takes weights from '" + location +
                    "', which is not among the bundle's files of weights; export the bundle again");
    }
}

// A graph's file and the weights of all graphs, in the order in which `dsd-trt build` hashes them.
std::string graph_hash(const std::string &file, const Hashes &files,
                       const std::vector<std::string> &weights) {
    Sha256 hash;
    hash.add(files.at(file));
    for (const std::string &name : weights) hash.add(files.at(name));
    return hash.hex();
}

Graph read_graph(Fields &graphs, const std::string &name, const fs::path &folder,
                 const Hashes &files, const std::vector<std::string> &weights) {
    Fields fields = graphs.object(name);
    const std::string file = fields.text("file");
    require_listed(files, fields.at("file"), file);
    check_weights(folder, file, fields.at("file"), weights);
    std::vector<fs::path> paths;
    for (const std::string &other : weights) paths.push_back(folder / other);
    Graph graph{name,
                folder / file,
                graph_hash(file, files, weights),
                std::move(paths),
                read_tensors(fields.list("inputs"), fields.at("inputs")),
                read_tensors(fields.list("outputs"), fields.at("outputs"))};
    fields.nothing_else();
    return graph;
}

void demand(const std::vector<Tensor> &got, const std::vector<Tensor> &wanted,
            const std::string &where) {
    const auto render = [](const std::vector<Tensor> &tensors) {
        std::string text;
        for (const Tensor &tensor : tensors) text += (text.empty() ? "" : "; ") + describe(tensor);
        return text;
    };
    // What is rendered is all that has to agree.
    require(render(got) == render(wanted), where,
            "must be " + render(wanted) + ", got " + render(got));
}

// The graphs every bundle holds. What the contract leaves open, the sizes of a latent and of text
// states, is read where it first appears and then demanded everywhere.
void check_contract(Bundle &bundle, bool half) {
    const auto &latents = bundle.image_encoder.outputs, &states = bundle.text_encoder.outputs;
    require(latents.size() == 1 && latents[0].shape.size() == 4, "graphs.image_encoder.outputs",
            "must be one tensor of rank 4");
    require(states.size() == 1 && states[0].shape.size() == 3, "graphs.text_encoder.outputs",
            "must be one tensor of rank 3");
    const auto type = half ? ElementType::float16 : ElementType::float32;
    const auto number = ElementType::float32;
    const std::int64_t side = bundle.resolution, length = bundle.max_length;
    // Stable Diffusion XL's states have one row more than there are tokens: the text as a whole.
    const auto &of_image = latents[0].shape, &of_text = states[0].shape;
    const std::int64_t rows = of_text[1] == length + 1 ? length + 1 : length;
    const Tensor latent{"latent", type, {-1, of_image[1], of_image[2], of_image[3]}};
    const Tensor text_states{"text_states", type, {-1, rows, of_text[2]}};
    for (const Tensor &tensor : {latent, text_states}) {
        for (std::size_t i = 1; i < tensor.shape.size(); ++i) {
            require(tensor.shape[i] > 0, "graphs",
                    "'" + tensor.name + "' must be dynamic in its first dimension only");
        }
    }
    demand(bundle.image_encoder.inputs, {{"pixels", ElementType::uint8, {-1, side, side, 3}}},
           "graphs.image_encoder.inputs");
    demand(latents, {latent}, "graphs.image_encoder.outputs");
    demand(bundle.text_encoder.inputs, {{"input_ids", ElementType::int32, {-1, length}}},
           "graphs.text_encoder.inputs");
    demand(states, {text_states}, "graphs.text_encoder.outputs");
    std::vector<Tensor> inputs{latent,
                               {"level", ElementType::int32, {-1}},
                               text_states,
                               {"token_mask", number, {-1, length}}};
    if (bundle.matrix_scorer) {
        Graph &graph = *bundle.matrix_scorer;
        auto apart = inputs;
        apart[2].shape[0] = apart[3].shape[0] = kTextSize;
        apart[3].shape[1] = kTokenSize;  // no wider than the longest text
        demand(graph.inputs, apart, "graphs.matrix_scorer.inputs");
        const std::vector<Tensor> scores{{"score", number, {kItemSize, kTextSize}}};
        demand(graph.outputs, scores, "graphs.matrix_scorer.outputs");
        graph.inputs = apart;  // which tell dynamic dimensions apart
        graph.outputs = scores;
    }
    if (const auto count = static_cast<std::int64_t>(bundle.adapter.size())) {
        inputs.push_back({"adapter", number, {count}});
    }
    demand(bundle.pair_scorer.inputs, inputs, "graphs.pair_scorer.inputs");
    std::vector<Tensor> outputs{{"score", number, {-1}}, {"token_scores", number, {-1, length}}};
    if (bundle.score != ScoreKind::attention) outputs.push_back({"denoising_error", number, {-1}});
    demand(bundle.pair_scorer.outputs, outputs, "graphs.pair_scorer.outputs");
}

void read_method(Bundle &bundle, Fields method) {
    constexpr const char *kScores[] = {"attention", "denoising", "attention+denoising", "released"};
    constexpr ScoreKind kKinds[] = {ScoreKind::attention, ScoreKind::denoising, ScoreKind::both,
                                    ScoreKind::both};
    constexpr const char *kMasks[] = {"words", "words_eos", "all"};
    bundle.score = kKinds[method.choice("score", kScores)];
    bundle.denoising_weight = method.number("denoising_weight");
    bundle.token_mask = static_cast<TokenMask>(method.choice("token_mask", kMasks));

    Fields levels = method.object("noise_levels");
    for (const Json &level : levels.list("fractions")) {
        require(level.is_number() && level > 0 && level < 1, levels.at("fractions"),
                "must lie between 0 and 1");
        bundle.levels.push_back(level.get<double>());
    }
    const std::set<double> distinct(bundle.levels.begin(), bundle.levels.end());
    require(!distinct.empty() && distinct.size() == bundle.levels.size(), levels.at("fractions"),
            "must be there, and distinct");
    require(levels.list("timesteps").size() == bundle.levels.size(), levels.at("timesteps"),
            "needs one timestep a level");
    (void)levels["seed"];
    levels.nothing_else();

    Fields weights = method.object("head_weights");
    const Json &values = weights.list("values");
    require(!values.empty(), weights.at("values"), "is empty");
    bundle.fewest_heads = values[0].size();
    for (const Json &layer : values) {
        require(layer.is_array() && !layer.empty(), weights.at("values"),
                "must be of lists of numbers");
        bundle.fewest_heads = std::min(bundle.fewest_heads, layer.size());
    }
    (void)weights["mode"];
    weights.nothing_else();
    if (!method["trained_for"].is_null()) {
        constexpr const char *kModes[] = {"pair", "both", "matrix"};
        bundle.trained_for_matrix = method.choice("trained_for", kModes) == 2;
    }
    // What the graph has folded in, and the scores alone depend on.
    for (const char *key : {"score_layers", "layer_names", "pooling", "lambda", "has_prompts"}) {
        (void)method[key];
    }
    method.nothing_else();
}

void read_adapter(Bundle &bundle, const Json &adapter, const fs::path &folder,
                  const Hashes &files) {
    if (adapter.is_null()) return;
    Fields fields(adapter, "adapter");
    const std::string file = fields.text("file");
    require_listed(files, fields.at("file"), file);
    const auto bytes = fs::file_size(folder / file);
    Fields tensors = fields.object("tensors");
    fields.nothing_else();
    std::uintmax_t numbers = 0;
    for (const auto &item : adapter["tensors"].items()) {
        std::uintmax_t product = 1;
        for (const Json &size : tensors.list(item.key())) {
            require(size.is_number_unsigned() && size > 0 && size <= bytes, tensors.at(item.key()),
                    "must be of sizes");
            product *= size.get<std::uintmax_t>();
            require(product <= bytes, tensors.at(item.key()), "is larger than the file");
        }
        numbers += product;
    }
    require(numbers > 0 && bytes == 4 * numbers, "adapter.tensors",
            "are " + std::to_string(4 * numbers) + " bytes, the file has " + std::to_string(bytes));
    std::ifstream stream(folder / file, std::ios::binary);
    std::vector<unsigned char> raw(bytes);
    stream.read(reinterpret_cast<char *>(raw.data()), static_cast<std::streamsize>(bytes));
    if (!stream) throw Error(ErrorCode::bundle, "file '" + file + "' cannot be read");
    bundle.adapter.resize(numbers);
    for (std::size_t i = 0; i < numbers; ++i) {  // little-endian, whatever this machine is
        const unsigned char *b = &raw[4 * i];
        const std::uint32_t bits = b[0] | b[1] << 8 | b[2] << 16 | std::uint32_t{b[3]} << 24;
        std::memcpy(&bundle.adapter[i], &bits, sizeof bits);
    }
}

SelfCheckFile read_self_check(Fields check, const fs::path &folder, const Hashes &files) {
    const std::string file = check.text("file");
    require_listed(files, check.at("file"), file);
    const double tolerance = check.number("tolerance");
    require(0 < tolerance && tolerance < 1, check.at("tolerance"), "must lie between 0 and 1");
    check.nothing_else();
    return {folder / file, tolerance};
}

// None where it is null, or what older bundles have in place of null.
std::optional<Calibration> read_calibration(Fields &owner) {
    if (owner["calibration"].is_null()) return std::nullopt;
    Fields fields = owner.object("calibration");
    const Calibration calibration{fields.number("a"), fields.number("b")};
    if (fields.has("fitted_on")) fields.object("fitted_on");  // a record for readers
    fields.nothing_else();
    if (calibration.a == 1 && calibration.b == 0) return std::nullopt;
    return calibration;
}

// Measured lists of texts, or of images, by the number of best candidates.
std::map<std::size_t, Measured> read_measured(const Json &json, Fields fields) {
    std::map<std::size_t, Measured> found;
    for (const auto &item : json.items()) {
        const std::string &key = item.key();
        const bool decimal = !key.empty() && key.size() < 10 && key[0] != '0' &&
                             key.find_first_not_of("0123456789") == key.npos;
        require(decimal, fields.at(key), "is named by no number above 0");
        Fields lists = fields.object(key);
        Measured measured{lists.integer("count", 1, kLargestSize), {}, {}};
        const auto numbers = [&](const char *name) {
            std::vector<double> read;
            const Json &given = lists.list(name);
            require(given.size() <= static_cast<std::size_t>(measured.count), lists.at(name),
                    "has more than " + std::to_string(measured.count) + ", its count");
            for (const Json &number : given) {
                require(number.is_number() && std::isfinite(number.get<double>()), lists.at(name),
                        "must be of finite numbers");
                read.push_back(number.get<double>());
            }
            return read;
        };
        measured.needs = numbers("needs");
        require(std::is_sorted(measured.needs.begin(), measured.needs.end()), lists.at("needs"),
                "must be ascending");
        if (lists.has("gaps")) {
            measured.gaps = numbers("gaps");
            require(std::is_sorted(measured.gaps.rbegin(), measured.gaps.rend()), lists.at("gaps"),
                    "must be descending");
            require(measured.gaps.empty() || measured.gaps.back() >= 0, lists.at("gaps"),
                    "must not be negative");
        }
        lists.nothing_else();
        found[std::stoul(key)] = std::move(measured);
    }
    return found;
}

Lists read_lists(Fields fields, const std::vector<double> &levels) {
    const auto last = static_cast<std::int32_t>(levels.size()) - 1;
    Lists lists{fields.integer("level", 0, last),
                fields.integer("candidates", 1, kLargestSize),
                fields.number("slope"),
                read_measured(fields["texts"], fields.object("texts")),
                read_measured(fields["images"], fields.object("images")),
                fields.has("rule") ? fields.integer("rule", 1, kLargestSize) : 1};
    fields.nothing_else();
    return lists;
}

void read_matrix(Bundle &bundle, const Json &matrix, Fields &graphs, const fs::path &folder,
                 const Hashes &files, const std::vector<std::string> &weights) {
    if (matrix.is_null()) return;
    Fields fields(matrix, "matrix");
    bundle.matrix_calibration = read_calibration(fields);
    bundle.query_pool = fields.integer("query_pool", 1);
    if (fields.has("lists")) bundle.lists = read_lists(fields.object("lists"), bundle.levels);
    fields.nothing_else();
    bundle.matrix_scorer = read_graph(graphs, "matrix_scorer", folder, files, weights);
}

// Forms for ONNX Runtime on CUDA, by the name of their graph.
std::map<std::string, fs::path> read_cuda_form(const Json &json, const Json &graphs,
                                               const fs::path &folder, const Hashes &files,
                                               const std::vector<std::string> &weights) {
    std::map<std::string, fs::path> found;
    Fields form(json, "cuda_form");
    for (const auto &item : json.items()) {
        const std::string &name = item.key();
        require(graphs.contains(name), form.at(name), "is no graph of the bundle");
        const std::string file = form.text(name);
        require_listed(files, form.at(name), file);
        check_weights(folder, file, form.at(name), weights);
        found[name] = folder / file;
    }
    return found;
}

Bundle read_manifest(const Json &json, const fs::path &folder) {
    const auto version = json.is_object() ? json.find("schema_version") : json.end();
    if (version == json.end() || !version->is_number_integer() || *version != kSchemaVersion) {
        throw Error(ErrorCode::bundle, std::string(kManifest) +
                                           " has another schema_version than " +
                                           std::to_string(kSchemaVersion) +
                                           ", which this library reads; export the bundle again");
    }
    Fields manifest(json, "");
    (void)manifest["schema_version"];

    Fields entries = manifest.object("files");
    Hashes files;
    const Snapshot snapshot = Snapshot::around(folder);
    for (const auto &item : json["files"].items()) {
        files[item.key()] = verify_file(folder, item.key(), snapshot, entries.object(item.key()));
    }

    Bundle bundle{};
    read_method(bundle, manifest.object("method"));

    Fields tokenizer = manifest.object("tokenizer");
    const std::string file = tokenizer.text("file");
    require_listed(files, tokenizer.at("file"), file);
    bundle.folder = folder;
    bundle.tokenizer = folder / file;
    bundle.max_length = tokenizer.integer("max_length", 2);
    bundle.bos = tokenizer.integer("bos_id", 0);
    bundle.eos = tokenizer.integer("eos_id", 0);
    bundle.pad = tokenizer.integer("pad_id", 0);
    bundle.vocabulary = tokenizer.has("vocabulary") ? tokenizer.integer("vocabulary", 1)
                                                    : std::numeric_limits<std::int32_t>::max();
    require(std::max({bundle.bos, bundle.eos, bundle.pad}) < bundle.vocabulary,
            tokenizer.at("vocabulary"), "must be above the ids of BOS, EOS and padding");
    tokenizer.nothing_else();

    constexpr const char *kResizes[] = {"bicubic-stretch", "bicubic-stretch-through-224"};
    Fields preprocessing = manifest.object("preprocessing");
    bundle.resolution = preprocessing.integer("resolution", 1);
    bundle.through_224 = preprocessing.choice("resize", kResizes) == 1;
    preprocessing.nothing_else();

    bundle.calibration = read_calibration(manifest);

    read_adapter(bundle, manifest["adapter"], folder, files);
    if (manifest.has("self_check")) {
        bundle.self_check = read_self_check(manifest.object("self_check"), folder, files);
    }
    Fields graphs = manifest.object("graphs");
    const std::vector<std::string> weights = weight_files(json, files);
    bundle.image_encoder = read_graph(graphs, "image_encoder", folder, files, weights);
    bundle.text_encoder = read_graph(graphs, "text_encoder", folder, files, weights);
    bundle.pair_scorer = read_graph(graphs, "pair_scorer", folder, files, weights);
    read_matrix(bundle, manifest["matrix"], graphs, folder, files, weights);
    graphs.nothing_else();
    if (manifest.has("cuda_form")) {
        auto forms = read_cuda_form(manifest["cuda_form"], json["graphs"], folder, files, weights);
        for (Graph *graph : {&bundle.image_encoder, &bundle.text_encoder, &bundle.pair_scorer}) {
            graph->cuda_form = forms[graph->name];
        }
        if (auto &graph = bundle.matrix_scorer) graph->cuda_form = forms[graph->name];
    }
    constexpr const char *kPrecisions[] = {"fp32", "fp16"};
    check_contract(bundle, manifest.choice("precision", kPrecisions) == 1);

    (void)manifest["provenance"];  // where it comes from is for people
    (void)manifest["parity"];
    (void)manifest.has("bfloat16");  // of an engine that is not here
    (void)manifest.has("maps");      // for explanations, which are not here
    manifest.nothing_else();
    return bundle;
}

}  // namespace

std::size_t size_of(ElementType type) {
    constexpr std::size_t kSizes[] = {1, 4, 2, 4};
    return kSizes[static_cast<int>(type)];
}

std::string describe(const Tensor &tensor) {
    std::string text = tensor.name + " " + kTypes[static_cast<int>(tensor.type)] + " [";
    for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
        text += i ? ", " : "";
        text += tensor.shape[i] < 0 ? "?" : std::to_string(tensor.shape[i]);
    }
    return text + "]";
}

Bundle read_bundle(const fs::path &folder) {
    const fs::path path = folder / kManifest;
    // A pipe is never opened: nobody may be writing to it.
    std::error_code none;
    std::ifstream stream;
    if (fs::is_regular_file(path, none)) stream.open(path, std::ios::binary);
    if (!stream.is_open()) {
        throw Error(ErrorCode::bundle, folder.string() + " is not a bundle: it has no " +
                                           kManifest +
                                           ". Make one with: dsd-trt export --out BUNDLE");
    }
    const std::string where = "bundle " + folder.string() + ": ";
    try {
        require_inside(folder, kManifest, Snapshot::around(folder));
        return read_manifest(parse_json(stream), folder);
    } catch (const Json::exception &error) {
        throw Error(ErrorCode::bundle, where + kManifest + " is not valid JSON: " + error.what());
    } catch (const fs::filesystem_error &error) {
        throw Error(ErrorCode::bundle, where + error.what());
    } catch (const Error &error) {
        throw Error(error.code(), where + error.what());
    }
}

}  // namespace dsd
