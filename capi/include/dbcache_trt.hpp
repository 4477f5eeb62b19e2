// dbcache-trt for C++17: objects that free themselves, and exceptions. Header only, over dbcache_trt.h, whose comments
// say what each call does and on which threads.
#ifndef DBCACHE_TRT_HPP
#define DBCACHE_TRT_HPP

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "dbcache_trt.h"

namespace dbcache {

/// What a failed call throws.
class error : public std::runtime_error {
public:
    /// Takes the error object.
    explicit error(dbcache_error *object)
        : std::runtime_error(dbcache_error_message(object)), code_(dbcache_error_code(object)) {
        if (const char *field = dbcache_error_field(object)) field_ = field;
        dbcache_error_free(object);
    }

    /// One of DBCACHE_ERROR_….
    int32_t code() const noexcept { return code_; }
    /// The option, argument, file or graph it is about; empty where no one thing is to blame.
    const std::string &field() const noexcept { return field_; }

private:
    int32_t code_;
    std::string field_;
};

/// Throws unless the call succeeded.
inline void check(dbcache_error *object) {
    if (object != nullptr) throw error(object);
}

namespace detail {

template <typename T, void (*Free)(T *)>
struct deleter {
    void operator()(T *object) const noexcept { Free(object); }
};

template <typename T, void (*Free)(T *)>
using handle = std::unique_ptr<T, deleter<T, Free>>;

/// A text for the library, which would take it to end at a zero.
inline const char *c_text(const std::string &text) {
    if (text.find('\0') != std::string::npos) throw std::invalid_argument("a text must not hold a zero");
    return text.c_str();
}

/// A text from a call that is made twice: for its length, then for itself; and again where it has grown in the meantime.
/// `checked` throws what a call failed with.
template <typename Call, typename Checked = void (*)(dbcache_error *)>
std::string text(Call call, Checked checked = check) {
    size_t length = 0;
    checked(call(nullptr, 0, &length));
    for (;;) {
        std::string text(length, '\0');
        dbcache_error *outcome = call(&text[0], text.size(), &length);
        if (outcome != nullptr && length > text.size()) {
            dbcache_error_free(outcome);
            continue;
        }
        checked(outcome);
        text.resize(length - 1);
        return text;
    }
}

}  // namespace detail

/// Options by the names of the command's long flags. They are moved, not copied.
class options {
public:
    options() {
        dbcache_options *object = nullptr;
        check(dbcache_options_new(&object));
        handle_.reset(object);
    }

    options &set(const std::string &name, const std::string &value) {
        check(dbcache_options_set(handle_.get(), detail::c_text(name), detail::c_text(value)));
        return *this;
    }

    /// Hears messages while an engine is looked at or loaded with these options. The callback returns true to go on; what it
    /// throws comes out of that call. For requests there is request::on_log.
    options &on_log(int32_t most, std::function<bool(const dbcache_log &)> callback) {
        auto hears = std::make_unique<hearing>();
        hears->callback = std::move(callback);
        check(dbcache_options_on_log(handle_.get(), most, hear, hears.get()));
        hears_ = std::move(hears);
        return *this;
    }

    const dbcache_options *get() const noexcept { return handle_.get(); }

    /// Throws what a call with these options failed with, or what the callback has thrown.
    void checked(dbcache_error *object) const {
        if (hears_ && hears_->thrown) {
            dbcache_error_free(object);
            std::rethrow_exception(std::exchange(hears_->thrown, nullptr));
        }
        check(object);
    }

private:
    struct hearing {
        std::function<bool(const dbcache_log &)> callback;
        std::exception_ptr thrown;
    };

    /// No exception may pass through the library: it is kept, and cancels.
    static int32_t hear(const dbcache_log *told, void *user) {
        auto *self = static_cast<hearing *>(user);
        try {
            return self->callback(*told) ? 0 : 1;
        } catch (...) {
            self->thrown = std::current_exception();
            return 1;
        }
    }

    std::unique_ptr<hearing> hears_;
    detail::handle<dbcache_options, dbcache_options_free> handle_;
};

/// Loads ONNX Runtime from a path, once per process.
inline void load_runtime(const std::string &path) { check(dbcache_runtime_load(detail::c_text(path))); }

/// What an engine directory is, as JSON.
inline std::string inspect(const std::string &directory, const options &with = options()) {
    auto call = [&](char *buffer, size_t capacity, size_t *length) {
        return dbcache_inspect(detail::c_text(directory), with.get(), buffer, capacity, length);
    };
    return detail::text(call, [&](dbcache_error *object) { with.checked(object); });
}

/// What loading and running with these options will take, as JSON. `text_length` 0: what the engine knows.
inline std::string plan(const std::string &directory, const options &with = options(), uint64_t text_length = 0) {
    auto call = [&](char *buffer, size_t capacity, size_t *length) {
        return dbcache_plan(detail::c_text(directory), with.get(), text_length, buffer, capacity, length);
    };
    return detail::text(call, [&](dbcache_error *object) { with.checked(object); });
}

/// A loaded model.
class engine {
public:
    explicit engine(const std::string &directory, const options &with = options()) {
        dbcache_engine *object = nullptr;
        dbcache_error *outcome = dbcache_engine_load(detail::c_text(directory), with.get(), &object);
        handle_.reset(object);
        with.checked(outcome);
    }

    std::string info() const {
        return detail::text([&](char *buffer, size_t capacity, size_t *length) {
            return dbcache_engine_info(handle_.get(), buffer, capacity, length);
        });
    }

    const dbcache_engine *get() const noexcept { return handle_.get(); }

private:
    detail::handle<dbcache_engine, dbcache_engine_free> handle_;
};

/// Numbers with a shape, copied from the host.
class tensor {
public:
    tensor(const std::vector<int64_t> &shape, const float *data, size_t count) {
        dbcache_tensor *object = nullptr;
        check(dbcache_tensor_new(DBCACHE_DTYPE_F32, shape.data(), shape.size(), data, count * sizeof(float), &object));
        handle_.reset(object);
    }

    const dbcache_tensor *get() const noexcept { return handle_.get(); }

private:
    detail::handle<dbcache_tensor, dbcache_tensor_free> handle_;
};

/// What a generation gave.
class result {
public:
    /// Takes the object.
    explicit result(dbcache_result *object) : handle_(object) {}

    /// The final latents, [batch, tokens, features].
    std::vector<float> latents() const {
        const dbcache_tensor *latents = nullptr;
        const float *data = nullptr;
        size_t count = 0;
        check(dbcache_result_latents(handle_.get(), &latents));
        check(dbcache_tensor_data(latents, &data, &count));
        return std::vector<float>(data, data + count);
    }

    /// Pictures or videos, one for each of the batch.
    size_t pictures() const {
        size_t count = 0;
        check(dbcache_result_pictures(handle_.get(), &count));
        return count;
    }

    /// A picture, or a frame of a video. The pixels are the result's and live as long.
    dbcache_picture picture(size_t index, size_t frame = 0) const {
        dbcache_picture picture{};
        picture.struct_size = sizeof picture;
        check(dbcache_result_frame(handle_.get(), index, frame, &picture));
        return picture;
    }

    void write_png(size_t index, const std::string &path) const {
        check(dbcache_result_write_png(handle_.get(), index, detail::c_text(path)));
    }

    /// In the format of its name, such as `.gif`; dbcache_result_write_video has the list.
    void write_video(size_t index, const std::string &path) const {
        check(dbcache_result_write_video(handle_.get(), index, detail::c_text(path)));
    }

    std::string trace() const { return text(dbcache_result_trace); }
    std::string statistics() const { return text(dbcache_result_statistics); }
    std::string summary() const { return text(dbcache_result_summary); }

private:
    template <typename Function>
    std::string text(Function function) const {
        return detail::text([&](char *buffer, size_t capacity, size_t *length) {
            return function(handle_.get(), buffer, capacity, length);
        });
    }

    detail::handle<dbcache_result, dbcache_result_free> handle_;
};

/// One generation. Callbacks return true to go on; what they throw comes out of run() or wait().
class request {
public:
    explicit request(const engine &on, const options &with = options()) : callbacks_(new callbacks) {
        dbcache_request *object = nullptr;
        check(dbcache_request_new(on.get(), with.get(), &object));
        handle_.reset(object);
    }

    request(request &&) = default;
    // A running request would lose its callbacks before it ends.
    request &operator=(request &&) = delete;

    request &prompt(const std::string &text) {
        check(dbcache_request_set_prompt(handle_.get(), detail::c_text(text)));
        return *this;
    }

    request &negative_prompt(const std::string &text) {
        check(dbcache_request_set_negative_prompt(handle_.get(), detail::c_text(text)));
        return *this;
    }

    request &set(const std::string &name, const tensor &numbers) {
        check(dbcache_request_set_tensor(handle_.get(), detail::c_text(name), numbers.get()));
        return *this;
    }

    request &on_progress(std::function<bool(const dbcache_progress &)> callback) {
        callbacks_->progress = std::move(callback);
        check(dbcache_request_on_progress(handle_.get(), call<dbcache_progress, &callbacks::progress>, callbacks_.get()));
        return *this;
    }

    request &on_step(std::function<bool(const dbcache_step &)> callback) {
        callbacks_->step = std::move(callback);
        check(dbcache_request_on_step(handle_.get(), call<dbcache_step, &callbacks::step>, callbacks_.get()));
        return *this;
    }

    request &on_preview(size_t every, std::function<bool(const dbcache_preview &)> callback) {
        callbacks_->preview = std::move(callback);
        callbacks_->every = every;
        check(dbcache_request_on_preview(handle_.get(), every, call<dbcache_preview, &callbacks::preview>,
                                         callbacks_.get()));
        return *this;
    }

    request &on_log(int32_t most, std::function<bool(const dbcache_log &)> callback) {
        callbacks_->log = std::move(callback);
        callbacks_->most = most;
        check(dbcache_request_on_log(handle_.get(), most, call<dbcache_log, &callbacks::log>, callbacks_.get()));
        return *this;
    }

    /// Runs on this thread.
    result run() {
        dbcache_result *object = nullptr;
        dbcache_error *outcome = dbcache_request_run(handle_.get(), &object);
        return ended(outcome, object);
    }

    void start() { check(dbcache_request_start(handle_.get())); }

    /// One of DBCACHE_STATE_….
    int32_t poll() const {
        int32_t state = 0;
        check(dbcache_request_poll(handle_.get(), &state));
        return state;
    }

    result wait() {
        dbcache_result *object = nullptr;
        dbcache_error *outcome = dbcache_request_wait(handle_.get(), &object);
        return ended(outcome, object);
    }

    void cancel() const { check(dbcache_request_cancel(handle_.get())); }

    dbcache_request *get() const noexcept { return handle_.get(); }

private:
    struct callbacks {
        std::function<bool(const dbcache_progress &)> progress;
        std::function<bool(const dbcache_step &)> step;
        std::function<bool(const dbcache_preview &)> preview;
        std::function<bool(const dbcache_log &)> log;
        size_t every = 1;
        int32_t most = DBCACHE_LOG_ERROR;
        std::exception_ptr thrown;
        std::mutex of_thrown;

        /// Throws what a callback has thrown, once.
        void rethrow() {
            std::unique_lock<std::mutex> lock(of_thrown);
            if (std::exception_ptr first = std::exchange(thrown, nullptr)) {
                lock.unlock();
                std::rethrow_exception(first);
            }
        }
    };

    /// No exception may pass through the library: it is kept, and cancels.
    template <typename T, std::function<bool(const T &)> callbacks::*Member>
    static int32_t call(const T *told, void *user) {
        auto *self = static_cast<callbacks *>(user);
        try {
            return (self->*Member)(*told) ? 0 : 1;
        } catch (...) {
            std::lock_guard<std::mutex> lock(self->of_thrown);
            if (!self->thrown) self->thrown = std::current_exception();
            return 1;
        }
    }

    result ended(dbcache_error *object, dbcache_result *result_object) {
        // What a callback threw is told rather than that it cancelled; a result is never dropped.
        if (object != nullptr) {
            detail::handle<dbcache_error, dbcache_error_free> error(object);
            callbacks_->rethrow();
            check(error.release());
        }
        return result(result_object);
    }

    friend class denoiser;

    /// Makes the object call these callbacks, as far as they are set.
    void direct(callbacks *to) const {
        if (to->progress) check(dbcache_request_on_progress(handle_.get(), call<dbcache_progress, &callbacks::progress>, to));
        if (to->step) check(dbcache_request_on_step(handle_.get(), call<dbcache_step, &callbacks::step>, to));
        if (to->preview) {
            check(dbcache_request_on_preview(handle_.get(), to->every, call<dbcache_preview, &callbacks::preview>, to));
        }
        if (to->log) check(dbcache_request_on_log(handle_.get(), to->most, call<dbcache_log, &callbacks::log>, to));
    }

    std::unique_ptr<callbacks> callbacks_;
    // Freed first, which waits for a running request: afterwards no callback is made.
    detail::handle<dbcache_request, dbcache_request_free> handle_;
};

/// A session for hosts that own the loop.
class denoiser {
public:
    /// With the engine, options, inputs and callbacks of a request that has not run, which is needed no longer. What a
    /// callback throws comes out of the call of the session that called it.
    explicit denoiser(const request &of, int32_t guidance = DBCACHE_GUIDANCE_LIBRARY) : callbacks_(new request::callbacks) {
        request::callbacks &own = *of.callbacks_;
        callbacks_->step = own.step;
        callbacks_->log = own.log;
        callbacks_->most = own.most;
        dbcache_denoiser *object = nullptr;
        // While the session is made it takes the request's callbacks, which are its own for that time.
        of.direct(callbacks_.get());
        dbcache_error *outcome = dbcache_denoiser_new(of.get(), guidance, &object);
        handle_.reset(object);
        detail::handle<dbcache_error, dbcache_error_free> error(outcome);
        of.direct(&own);
        checked(error.release());
        const int64_t *shape = nullptr;
        size_t rank = 0;
        check(dbcache_denoiser_shape(object, &steps_, &shape, &rank));
        shape_.assign(shape, shape + rank);
        int32_t branches[2] = {0, 0};
        size_t count = 0;
        check(dbcache_denoiser_branches(object, branches, &count));
        branches_.assign(branches, branches + count);
    }

    size_t steps() const noexcept { return steps_; }
    /// Of the latents, such as [batch, tokens, features].
    const std::vector<int64_t> &shape() const noexcept { return shape_; }
    /// In the order in which each step calls them.
    const std::vector<int32_t> &branches() const noexcept { return branches_; }

    std::vector<float> sigmas() const {
        std::vector<float> sigmas(steps_ + 1);
        check(dbcache_denoiser_sigmas(handle_.get(), sigmas.data(), sigmas.size()));
        return sigmas;
    }

    std::vector<float> latents() const {
        size_t count = 1;
        for (int64_t extent : shape_) count *= static_cast<size_t>(extent);
        std::vector<float> latents(count);
        check(dbcache_denoiser_latents(handle_.get(), latents.data(), latents.size()));
        return latents;
    }

    std::vector<float> velocity(int32_t branch, float sigma, const std::vector<float> &latents) {
        std::vector<float> velocity(latents.size());
        checked(dbcache_denoiser_velocity(handle_.get(), branch, sigma, latents.data(), velocity.data(), velocity.size()));
        return velocity;
    }

    result finish(const std::vector<float> &latents) {
        dbcache_result *object = nullptr;
        checked(dbcache_denoiser_result(handle_.get(), latents.data(), latents.size(), &object));
        return result(object);
    }

    void cancel() const { check(dbcache_denoiser_cancel(handle_.get())); }

private:
    /// Throws what a callback has thrown, or what the call failed with.
    void checked(dbcache_error *object) const {
        if (object == nullptr) return;
        detail::handle<dbcache_error, dbcache_error_free> error(object);
        callbacks_->rethrow();
        check(error.release());
    }

    std::unique_ptr<request::callbacks> callbacks_;
    // Freed first: its log callback is one of those above.
    detail::handle<dbcache_denoiser, dbcache_denoiser_free> handle_;
    size_t steps_ = 0;
    std::vector<int64_t> shape_;
    std::vector<int32_t> branches_;
};

}  // namespace dbcache

#endif  // DBCACHE_TRT_HPP
