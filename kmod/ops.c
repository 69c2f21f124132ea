// SPDX-License-Identifier: GPL-2.0-only
/*
 * The op table, and the one way through it from a front to a handler. The fronts
 * are ioctl(), io_uring's commands, and DMAPROBE_RUN.
 */
#include <linux/fs.h>
#include <linux/io_uring/cmd.h>
#include <linux/nospec.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "compat.h"
#include "private.h"

/* Memory on the stack for the struct of any op. */
union dmaprobe_cmd_buffer {
	struct dmaprobe_version version;
	struct dmaprobe_call call;
	struct dmaprobe_limits limits;
	struct dmaprobe_domain domain;
	struct dmaprobe_set_mask set_mask;
	struct dmaprobe_enable enable;
	struct dmaprobe_buffer_alloc buffer_alloc;
	struct dmaprobe_buffer_free buffer_free;
	struct dmaprobe_map map;
	struct dmaprobe_unmap unmap;
	struct dmaprobe_sync sync;
	struct dmaprobe_iova_alloc iova_alloc;
	struct dmaprobe_iova_free iova_free;
	struct dmaprobe_iova_link iova_link;
	struct dmaprobe_iova_sync iova_sync;
	struct dmaprobe_iova_unlink iova_unlink;
	struct dmaprobe_iova_destroy iova_destroy;
	struct dmaprobe_iova_state iova_state;
	struct dmaprobe_translate translate;
	struct dmaprobe_nop nop;
	struct dmaprobe_stats stats;
	struct dmaprobe_run run;
	struct dmaprobe_bench bench;
	struct dmaprobe_set_segments set_segments;
	struct dmaprobe_buffer_pin buffer_pin;
	struct dmaprobe_copy copy;
	struct dmaprobe_map_sg map_sg;
	struct dmaprobe_map_resource map_resource;
	struct dmaprobe_map_dmabuf map_dmabuf;
	struct dmaprobe_segments segments;
	struct dmaprobe_alloc alloc;
	struct dmaprobe_alloc_free alloc_free;
	struct dmaprobe_sgtable sgtable;
	struct dmaprobe_export export;
	struct dmaprobe_pool_create pool_create;
	struct dmaprobe_pool_destroy pool_destroy;
	struct dmaprobe_pool_alloc pool_alloc;
	struct dmaprobe_pool_free pool_free;
};

struct dmaprobe_op {
	unsigned int cmd;
	u32 size;
	u32 min_size;
	u32 flags;		/* those that the op knows */
	bool exclusive;		/* runs alone on its device */
	bool unlocked;		/* sees to unplug_lock and ENODEV itself */
	bool sleeps;		/* may take long: not for a ring's submitter */
	bool answers;		/* its struct is written back */
	int (*execute)(struct dmaprobe_ucmd *ucmd);
};

#define OP(_cmd, _fn, _struct, _last, ...)				\
	[_IOC_NR(_cmd)] = {						\
		.cmd = _cmd,						\
		.size = sizeof(struct _struct) +			\
			BUILD_BUG_ON_ZERO(sizeof(union dmaprobe_cmd_buffer) < \
					  sizeof(struct _struct)) +	\
			BUILD_BUG_ON_ZERO(sizeof(struct _struct) % sizeof(u64)) + \
			BUILD_BUG_ON_ZERO(offsetof(struct _struct, size) != 0) + \
			BUILD_BUG_ON_ZERO(offsetof(struct _struct, flags) != 4), \
		.min_size = offsetofend(struct _struct, _last),		\
		.execute = _fn,						\
		__VA_ARGS__						\
	}

static const struct dmaprobe_op dmaprobe_ops[] = {
	OP(DMAPROBE_VERSION, dmaprobe_op_version, dmaprobe_version, nr_calls, .answers = true),
	OP(DMAPROBE_CALL, dmaprobe_op_call, dmaprobe_call, detail, .answers = true),
	OP(DMAPROBE_LIMITS, dmaprobe_op_limits, dmaprobe_limits,
	   min_align_mask, .answers = true),
	OP(DMAPROBE_DOMAIN, dmaprobe_op_domain, dmaprobe_domain, driver, .answers = true),
	OP(DMAPROBE_SET_MASK, dmaprobe_op_set_mask, dmaprobe_set_mask, mask,
	   .flags = DMAPROBE_SET_MASK_STREAMING | DMAPROBE_SET_MASK_COHERENT,
	   .exclusive = true, .sleeps = true),
	OP(DMAPROBE_ENABLE, dmaprobe_op_enable, dmaprobe_enable, __reserved,
	   .sleeps = true),
	OP(DMAPROBE_BUFFER_ALLOC, dmaprobe_op_buffer_alloc,
	   dmaprobe_buffer_alloc, mmap_offset,
	   .flags = DMAPROBE_BUFFER_NODE, .sleeps = true, .unlocked = true, .answers = true),
	OP(DMAPROBE_BUFFER_FREE, dmaprobe_op_buffer_free, dmaprobe_buffer_free,
	   __reserved, .sleeps = true),
	OP(DMAPROBE_MAP, dmaprobe_op_map, dmaprobe_map, __reserved, .answers = true),
	OP(DMAPROBE_UNMAP, dmaprobe_op_unmap, dmaprobe_unmap, __reserved),
	OP(DMAPROBE_SYNC, dmaprobe_op_sync, dmaprobe_sync, length),
	OP(DMAPROBE_IOVA_ALLOC, dmaprobe_op_iova_alloc, dmaprobe_iova_alloc,
	   addr, .answers = true),
	OP(DMAPROBE_IOVA_FREE, dmaprobe_op_iova_free, dmaprobe_iova_free,
	   __reserved),
	OP(DMAPROBE_IOVA_LINK, dmaprobe_op_iova_link, dmaprobe_iova_link,
	   attrs),
	OP(DMAPROBE_IOVA_SYNC, dmaprobe_op_iova_sync, dmaprobe_iova_sync,
	   length),
	OP(DMAPROBE_IOVA_UNLINK, dmaprobe_op_iova_unlink, dmaprobe_iova_unlink,
	   attrs),
	OP(DMAPROBE_IOVA_DESTROY, dmaprobe_op_iova_destroy,
	   dmaprobe_iova_destroy, attrs),
	OP(DMAPROBE_IOVA_STATE, dmaprobe_op_iova_state, dmaprobe_iova_state,
	   bounced, .answers = true),
	OP(DMAPROBE_TRANSLATE, dmaprobe_op_translate, dmaprobe_translate,
	   translated, .flags = DMAPROBE_TRANSLATE_PHYS, .sleeps = true,
	   .unlocked = true, .answers = true),
	OP(DMAPROBE_NOP, dmaprobe_op_nop, dmaprobe_nop, flags),
	OP(DMAPROBE_STATS, dmaprobe_op_stats, dmaprobe_stats, pinned, .sleeps = true,
	   .answers = true),
	OP(DMAPROBE_RUN, dmaprobe_op_run, dmaprobe_run, ops,
	   .flags = DMAPROBE_RUN_CONTINUE, .sleeps = true, .unlocked = true, .answers = true),
	OP(DMAPROBE_BENCH, dmaprobe_op_bench, dmaprobe_bench, ns, .sleeps = true,
	   .unlocked = true, .answers = true),
	OP(DMAPROBE_SET_SEGMENTS, dmaprobe_op_set_segments,
	   dmaprobe_set_segments, segment_boundary_mask,
	   .flags = DMAPROBE_SET_SEGMENTS_MAX_SIZE |
		    DMAPROBE_SET_SEGMENTS_BOUNDARY |
		    DMAPROBE_SET_SEGMENTS_MIN_ALIGN,
	   .exclusive = true, .sleeps = true),
	OP(DMAPROBE_BUFFER_PIN, dmaprobe_op_buffer_pin, dmaprobe_buffer_pin,
	   __reserved, .flags = DMAPROBE_BUFFER_PIN_READ_ONLY, .sleeps = true,
	   .unlocked = true, .answers = true),
	OP(DMAPROBE_COPY, dmaprobe_op_copy, dmaprobe_copy, addr, .sleeps = true, .unlocked = true),
	OP(DMAPROBE_MAP_SG, dmaprobe_op_map_sg, dmaprobe_map_sg, need_sync,
	   .sleeps = true, .unlocked = true, .answers = true),
	OP(DMAPROBE_MAP_RESOURCE, dmaprobe_op_map_resource,
	   dmaprobe_map_resource, dma_addr, .answers = true),
	OP(DMAPROBE_MAP_DMABUF, dmaprobe_op_map_dmabuf, dmaprobe_map_dmabuf,
	   length, .sleeps = true, .answers = true),
	OP(DMAPROBE_SEGMENTS, dmaprobe_op_segments, dmaprobe_segments, segments,
	   .sleeps = true, .answers = true),
	OP(DMAPROBE_ALLOC, dmaprobe_op_alloc, dmaprobe_alloc, mmap_offset,
	   .sleeps = true, .answers = true),
	OP(DMAPROBE_ALLOC_FREE, dmaprobe_op_alloc_free, dmaprobe_alloc_free,
	   __reserved, .sleeps = true),
	OP(DMAPROBE_SGTABLE, dmaprobe_op_sgtable, dmaprobe_sgtable, entries,
	   .flags = DMAPROBE_SGTABLE_PHYS, .sleeps = true, .answers = true),
	OP(DMAPROBE_EXPORT, dmaprobe_op_export, dmaprobe_export, fd, .sleeps = true,
	   .unlocked = true),
	OP(DMAPROBE_POOL_CREATE, dmaprobe_op_pool_create, dmaprobe_pool_create,
	   __reserved, .sleeps = true, .answers = true),
	OP(DMAPROBE_POOL_DESTROY, dmaprobe_op_pool_destroy,
	   dmaprobe_pool_destroy, __reserved, .sleeps = true),
	OP(DMAPROBE_POOL_ALLOC, dmaprobe_op_pool_alloc, dmaprobe_pool_alloc,
	   dma_addr, .sleeps = true, .answers = true),
	OP(DMAPROBE_POOL_FREE, dmaprobe_op_pool_free, dmaprobe_pool_free,
	   __reserved),
};

/**
 * dmaprobe_respond - write an op's struct back
 * @ucmd: the call
 *
 * This can fault; so it is done for the ops, when they have let go of all locks.
 *
 * Return: 0 or -EFAULT
 */
int dmaprobe_respond(const struct dmaprobe_ucmd *ucmd)
{
	return copy_struct_to_user(ucmd->ubuffer, ucmd->user_size, ucmd->cmd,
				   ucmd->size, NULL);
}

/**
 * dmaprobe_tell - make room for an array that is told beside the struct
 * @ucmd: the call
 * @to: where the caller wants it
 * @nr: elements
 * @size: bytes of one, a multiple of what its members need
 *
 * The op fills ucmd->array. It is copied, and freed, with the struct.
 *
 * Return: 0 or -ENOMEM
 */
int dmaprobe_tell(struct dmaprobe_ucmd *ucmd, u64 to, size_t nr, size_t size)
{
	if (!nr)
		return 0;
	ucmd->array = kvcalloc(nr, size, GFP_KERNEL_ACCOUNT);
	if (!ucmd->array)
		return -ENOMEM;
	ucmd->array_to = u64_to_user_ptr(to);
	ucmd->array_size = nr * size;
	return 0;
}

static int tell(const struct dmaprobe_ucmd *ucmd)
{
	if (ucmd->array_size &&
	    copy_to_user(ucmd->array_to, ucmd->array, ucmd->array_size))
		return -EFAULT;
	return dmaprobe_respond(ucmd);
}

/*
 * Read the struct of a caller who knows the same one, which is nearly all of
 * them, without what it costs to copy any length to anywhere.
 *
 * Return: 0, -EFAULT, or -EINVAL when the caller's struct is another one
 */
static __always_inline int fetch_same(const struct dmaprobe_op *op, struct dmaprobe_ucmd *ucmd)
{
	const u64 __user *from = ucmd->ubuffer;
	u64 *to = ucmd->cmd;
	int ret = -EFAULT;
	u32 i;

	if (!user_read_access_begin(from, op->size))
		return -EINVAL;
	unsafe_get_user(ucmd->user_size, (u32 __user *)from, out);
	ret = -EINVAL;
	if (ucmd->user_size != op->size)
		goto out;
	ret = -EFAULT;
	for (i = 0; i < op->size / sizeof(*to); i++)
		unsafe_get_user(to[i], from + i, out);
	ret = 0;
out:
	user_read_access_end();
	return ret;
}

/* Read the struct of any caller. */
static noinline int fetch_any(const struct dmaprobe_op *op, struct dmaprobe_ucmd *ucmd)
{
	if (get_user(ucmd->user_size, (u32 __user *)ucmd->ubuffer))
		return -EFAULT;
	if (ucmd->user_size < op->min_size)
		return -EINVAL;
	if (ucmd->user_size > PAGE_SIZE)
		return -E2BIG;
	return copy_struct_from_user(ucmd->cmd, op->size, ucmd->ubuffer,
				     ucmd->user_size);
}

/*
 * Let go of unplug_lock between two calls of a run; a run keeps it from one short
 * call to the next, and reads and answers these without a fault if it can.
 */
static void run_unlock(struct dmaprobe_ucmd *ucmd)
{
	if (ucmd->run && ucmd->run->locked) {
		ucmd->run->locked = false;
		pagefault_enable();
		up_read(&ucmd->session->dd->unplug_lock);
	}
}

static __always_inline bool lock(struct dmaprobe_ucmd *ucmd)
{
	struct rw_semaphore *sem = &ucmd->session->dd->unplug_lock;

	if (ucmd->run) {
		if (!ucmd->run->locked) {
			down_read(sem);
			pagefault_disable();
		}
		ucmd->run->locked = true;
		return true;
	}
	if (ucmd->nonblock)
		return down_read_trylock(sem);
	down_read(sem);
	return true;
}

static void unlock(const struct dmaprobe_op *op, struct dmaprobe_ucmd *ucmd)
{
	if (op->sleeps && ucmd->run)
		run_unlock(ucmd);
	else if (!ucmd->run)
		up_read(&ucmd->session->dd->unplug_lock);
}

static int execute(const struct dmaprobe_op *op, struct dmaprobe_ucmd *ucmd)
{
	if (!ucmd->session->dd->pdev)
		return -ENODEV;
	return op->execute(ucmd);
}

static noinline int execute_alone(const struct dmaprobe_op *op, struct dmaprobe_ucmd *ucmd)
{
	guard(rwsem_write)(&ucmd->session->dd->unplug_lock);
	return execute(op, ucmd);
}

/*
 * Read the struct in the way that is always right. A fault that must not be taken
 * under the lock is taken now.
 */
static noinline int fetch_again(const struct dmaprobe_op *op, struct dmaprobe_ucmd *ucmd,
				int ret)
{
	bool locked = ucmd->run && ucmd->run->locked;

	if (ret == -EINVAL)
		ret = fetch_any(op, ucmd);
	if (ret == -EFAULT && locked) {
		run_unlock(ucmd);
		ret = fetch_any(op, ucmd);
	}
	return ret;
}

/* Read the op's struct and check what all structs have in common. */
static __always_inline int fetch(const struct dmaprobe_op *op, struct dmaprobe_ucmd *ucmd)
{
	const struct dmaprobe_nop *head = ucmd->cmd;
	int ret;

	ucmd->size = op->size;
	ret = fetch_same(op, ucmd);
	if (unlikely(ret)) {
		ret = fetch_again(op, ucmd, ret);
		if (ret)
			return ret;
	}
	/* Every struct begins like this one. */
	if (head->flags & ~op->flags)
		return -EOPNOTSUPP;
	return 0;
}

static noinline int answer(struct dmaprobe_ucmd *ucmd, int ret)
{
	if (!ret) {
		ret = tell(ucmd);
		if (unlikely(ret) && ucmd->run && ucmd->run->locked) {
			run_unlock(ucmd);
			ret = tell(ucmd);
		}
		if (unlikely(ret) && ucmd->made)
			dmaprobe_object_undo(ucmd);
	}
	if (unlikely(ucmd->array)) {
		kvfree(ucmd->array);
		ucmd->array = NULL;
		ucmd->array_size = 0;
	}
	return ret;
}

/*
 * The one way from a front to a handler. The front has filled in where the call
 * comes from. The answer is the op's; or -EAGAIN, for which no op has a reason of
 * its own, when the call must not sleep but would. It is part of each front, so
 * that none pays for the others.
 */
static __always_inline int dispatch(struct dmaprobe_ucmd *ucmd, unsigned int cmd)
{
	/* Ops see what was copied there, which is all of their struct. */
	union dmaprobe_cmd_buffer buf __uninitialized;
	const struct dmaprobe_op *op;
	unsigned int nr = _IOC_NR(cmd);
	int ret;

	if (nr >= ARRAY_SIZE(dmaprobe_ops))
		return -ENOTTY;
	op = &dmaprobe_ops[array_index_nospec(nr, ARRAY_SIZE(dmaprobe_ops))];
	if (op->cmd != cmd)
		return -ENOTTY;
	if (op->sleeps && ucmd->nonblock)
		return -EAGAIN;

	ucmd->cmd = &buf;
	ret = fetch(op, ucmd);
	if (ret)
		return ret;

	if (op->unlocked || op->exclusive) {
		run_unlock(ucmd);
		ret = op->unlocked ? op->execute(ucmd) : execute_alone(op, ucmd);
	} else {
		if (!lock(ucmd))
			return -EAGAIN;
		ret = execute(op, ucmd);
		unlock(op, ucmd);
	}
	return op->answers ? answer(ucmd, ret) : ret;
}

long dmaprobe_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct dmaprobe_ucmd ucmd = {
		.session = file->private_data,
		.ubuffer = (void __user *)arg,
	};

	return dispatch(&ucmd, cmd);
}

/* What a later kernel may give a meaning to must be zero today. */
static bool sqe_is_plain(const struct io_uring_cmd *ioucmd, unsigned int issue_flags)
{
	const struct io_uring_sqe *sqe = ioucmd->sqe;

	if (ioucmd->flags & IORING_URING_CMD_MASK)
		return false;
	if (READ_ONCE(sqe->ioprio) || READ_ONCE(sqe->__pad1) ||
	    READ_ONCE(sqe->len) || READ_ONCE(sqe->buf_index) ||
	    READ_ONCE(sqe->file_index) || READ_ONCE(sqe->addr3) ||
	    READ_ONCE(sqe->__pad2[0]))
		return false;
	/* A large SQE has one more behind it, all of it the command's. */
	return !(issue_flags & IO_URING_F_SQE128) ||
	       !memchr_inv(sqe + 1, 0, sizeof(*sqe));
}

int dmaprobe_uring_cmd(struct io_uring_cmd *ioucmd, unsigned int issue_flags)
{
	struct dmaprobe_ucmd ucmd = {
		.session = ioucmd->file->private_data,
		.nonblock = issue_flags & IO_URING_F_NONBLOCK,
	};

	if (!sqe_is_plain(ioucmd, issue_flags))
		return -EINVAL;
	ucmd.ubuffer = u64_to_user_ptr(READ_ONCE(ioucmd->sqe->addr));
	return dispatch(&ucmd, ioucmd->cmd_op);
}

#define RUN_CHUNK	32	/* calls of a run that are read at a time */
#define RUN_FEW		32	/* calls whose ids fit on the stack */

/*
 * No call is made yet. This also finds out whether the results can be told,
 * before there is one that could not.
 */
static int cancel_all(struct dmaprobe_run_op __user *ops, u32 nr)
{
	u32 i;

	if (!user_write_access_begin(ops, nr * sizeof(*ops)))
		return -EFAULT;
	for (i = 0; i < nr; i++)
		unsafe_put_user(-ECANCELED, &ops[i].result, fault);
	user_write_access_end();
	return 0;

fault:
	user_write_access_end();
	return -EFAULT;
}

static int read_calls(struct dmaprobe_run_op *to,
		      const struct dmaprobe_run_op __user *from, u32 nr)
{
	u32 i;

	if (!user_read_access_begin(from, nr * sizeof(*from)))
		return -EFAULT;
	for (i = 0; i < nr; i++) {
		unsafe_get_user(to[i].cmd, &from[i].cmd, fault);
		unsafe_get_user(to[i].arg, &from[i].arg, fault);
	}
	user_read_access_end();
	return 0;

fault:
	user_read_access_end();
	return -EFAULT;
}

static int tell_results(struct dmaprobe_run_op __user *to,
			const struct dmaprobe_run_op *from, u32 nr)
{
	u32 i;

	if (!user_write_access_begin(to, nr * sizeof(*to)))
		return -EFAULT;
	for (i = 0; i < nr; i++)
		unsafe_put_user(from[i].result, &to[i].result, fault);
	user_write_access_end();
	return 0;

fault:
	user_write_access_end();
	return -EFAULT;
}

static int run(struct dmaprobe_ucmd *ucmd, u32 *ids)
{
	struct dmaprobe_run *cmd = ucmd->cmd;
	struct dmaprobe_run_op __user *ops = u64_to_user_ptr(cmd->ops);
	struct dmaprobe_run_op chunk[RUN_CHUNK] __uninitialized;
	struct dmaprobe_run_state state = { .ids = ids };
	struct dmaprobe_ucmd call = {
		.session = ucmd->session,
		.run = &state,
	};
	bool stop = false;

	while (!stop && state.nr < cmd->nr_ops) {
		u32 left = cmd->nr_ops - state.nr;
		struct dmaprobe_run_op *op = chunk, *end = chunk + min(left, RUN_CHUNK);

		if (read_calls(chunk, ops, end - chunk))
			return -EFAULT;
		for (; op < end && !stop; op++) {
			call.ubuffer = u64_to_user_ptr(op->arg);
			call.made = 0;
			op->result = dispatch(&call, op->cmd);
			ids[state.nr++] = call.made;
			stop = op->result &&
			       !(cmd->flags & DMAPROBE_RUN_CONTINUE);
			/* Between short calls there is no need to ask. */
			if (!state.locked)
				stop |= dmaprobe_cancelled();
		}
		run_unlock(&call);
		stop |= dmaprobe_cancelled();
		if (tell_results(ops, chunk, op - chunk))
			return -EFAULT;
		ops += op - chunk;
		cond_resched();
	}
	cmd->done = state.nr;
	return 0;
}

int dmaprobe_op_run(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_run *cmd = ucmd->cmd;
	u32 few[RUN_FEW] __uninitialized, *ids = few;
	int ret;

	if (ucmd->run || !cmd->nr_ops || cmd->nr_ops > DMAPROBE_RUN_MAX)
		return -EINVAL;

	/* That something cannot be told shall be known before it is done. */
	ret = dmaprobe_respond(ucmd) ?:
	      cancel_all(u64_to_user_ptr(cmd->ops), cmd->nr_ops);
	if (ret)
		return ret;

	if (cmd->nr_ops > RUN_FEW) {
		ids = kvmalloc_array(cmd->nr_ops, sizeof(*ids),
				     GFP_KERNEL_ACCOUNT);
		if (!ids)
			return -ENOMEM;
	}
	ret = run(ucmd, ids);
	if (ids != few)
		kvfree(ids);
	return ret;
}
