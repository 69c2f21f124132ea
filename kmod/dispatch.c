// SPDX-License-Identifier: GPL-2.0-only
/*
 * The op table, and the one way through it: from a front (ioctl(), uring.c, run.c) to a
 * handler, and back with the answer.
 */
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/nospec.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "compat.h"
#include "private.h"

#define CREATE_TRACE_POINTS
#include "trace.h"

/* Memory on the stack for the struct of any op. */
union dmaprobe_cmd_buffer {
#define OP(_cmd, _name, ...) struct dmaprobe_##_name _name;
#include "ops.h"
#undef OP
};

struct dmaprobe_op {
	unsigned int cmd;
	u32 size;
	u32 min_size;
	u32 flags;		/* those that the op knows */
	u32 reserved;		/* offset of a member that must be 0; or 0 */
	bool read_only;		/* legal when the file is not open for writing */
	bool exclusive;		/* takes dmaprobe_group::lock for writing */
	bool self_locked;	/* takes the lock, and looks for the device, itself */
	bool may_block;		/* may take long: not for a ring's submitter */
	bool writeback;		/* its struct is written back */
	const char *name;
	int (*handle)(struct dmaprobe_ucmd *ucmd);
};

#define OP(_cmd, _name, _last, ...)					\
	[_IOC_NR(DMAPROBE_##_cmd)] = {					\
		.cmd = DMAPROBE_##_cmd,					\
		.size = sizeof(struct dmaprobe_##_name) +		\
			BUILD_BUG_ON_ZERO(sizeof(struct dmaprobe_##_name) % sizeof(u64)) + \
			BUILD_BUG_ON_ZERO(offsetof(struct dmaprobe_##_name, size) != 0) + \
			BUILD_BUG_ON_ZERO(offsetof(struct dmaprobe_##_name, flags) != 4), \
		.min_size = offsetofend(struct dmaprobe_##_name, _last), \
		.reserved = __builtin_strcmp(#_last, "__reserved") ? 0 : \
			    offsetof(struct dmaprobe_##_name, _last),	\
		.name = #_name,						\
		.handle = dmaprobe_op_##_name,				\
		__VA_ARGS__						\
	},

static const struct dmaprobe_op dmaprobe_ops[] = {
#include "ops.h"
};

#undef OP

/* Read an array beside the struct: kvfree() it. Returns it or an ERR_PTR(). */
void *dmaprobe_fetch_array(u64 from, size_t nr, size_t size)
{
	void *array = kvmalloc_array(nr, size, DMAPROBE_ARRAY_GFP);

	if (!array)
		return ERR_PTR(-ENOMEM);
	if (!copy_from_user(array, u64_to_user_ptr(from), nr * size))
		return array;
	kvfree(array);
	return ERR_PTR(-EFAULT);
}

/* Make room for an array that the op fills and that is written back. */
int dmaprobe_reply_array(struct dmaprobe_ucmd *ucmd, u64 to, size_t nr, size_t size)
{
	if (!nr)
		return 0;
	ucmd->array = kvcalloc(nr, size, ucmd->op->self_locked ? DMAPROBE_ARRAY_GFP : DMAPROBE_GFP);
	if (!ucmd->array)
		return -ENOMEM;
	ucmd->array_to = u64_to_user_ptr(to);
	ucmd->array_size = nr * size;
	return 0;
}

/*
 * Read the op's struct and check what all structs have in common. As
 * copy_struct_from_user(), but word by word: most are a few words long.
 */
static int ucmd_fetch(struct dmaprobe_ucmd *ucmd, const struct dmaprobe_op *op)
{
	const struct dmaprobe_nop *head = ucmd->cmd;	/* how every struct begins */
	const u64 __user *from = ucmd->ubuffer;
	u64 *to = ucmd->cmd;
	u32 size, i;
	int ret;

	if (get_user(ucmd->user_size, (const u32 __user *)from))
		return -EFAULT;
	if (ucmd->user_size > PAGE_SIZE)
		return -E2BIG;
	if (ucmd->user_size < op->min_size || ucmd->user_size % sizeof(*to))
		return -EINVAL;
	size = min(ucmd->user_size, op->size);
	if (!user_access_begin(from, size))
		return -EFAULT;
	for (i = 0; i < size / sizeof(*to); i++)
		unsafe_get_user(to[i], from + i, fault);
	user_access_end();
	if (size < op->size)
		memset(ucmd->cmd + size, 0, op->size - size);
	ret = size < ucmd->user_size ?
	      check_zeroed_user(ucmd->ubuffer + size, ucmd->user_size - size) : 1;
	if (ret <= 0)
		return ret ?: -E2BIG;

	if (head->flags & ~op->flags)
		return -EOPNOTSUPP;
	if (ucmd->session->read_only && !op->read_only)
		return -EBADF;
	/* Not to take the lock from whoever has the device now. */
	if (READ_ONCE(ucmd->session->dd->unplugged) && op->handle != dmaprobe_op_run)
		return -ENODEV;
	return op->reserved && *(u32 *)(ucmd->cmd + op->reserved) ? -EINVAL : 0;

fault:
	user_access_end();
	return -EFAULT;
}

static bool op_lock(struct dmaprobe_group *group, const struct dmaprobe_op *op, bool nonblock)
{
	if (!op->exclusive && nonblock)
		return down_read_trylock(&group->lock);
	if (op->exclusive) {
		mutex_lock(&group->turn);
		down_write(&group->lock);
	} else {
		down_read(&group->lock);
	}
	return true;
}

/* Write the answer, and show what was made; without an answer, nothing was. */
static int ucmd_reply(struct dmaprobe_ucmd *ucmd, int ret)
{
	if (!ret && ucmd->array && copy_to_user(ucmd->array_to, ucmd->array, ucmd->array_size))
		ret = -EFAULT;
	if (!ret)
		ret = copy_struct_to_user(ucmd->ubuffer, ucmd->user_size, ucmd->cmd,
					  ucmd->op->size, NULL);
	if (ucmd->array)
		kvfree(ucmd->array);
	if (ucmd->made && !ret)
		dmaprobe_object_show(ucmd->session, ucmd->made);
	else if (ucmd->made)
		dmaprobe_object_withdraw(ucmd->session, ucmd->made);
	if (ucmd->file && !ret) {
		fd_install(ucmd->fd, ucmd->file);
	} else if (ucmd->file) {
		put_unused_fd(ucmd->fd);
		fput(ucmd->file);
	}
	return ret;
}

/**
 * dmaprobe_dispatch - make a call: the one way from a front to a handler
 * @ucmd: the call; the front has filled in where it comes from
 * @cmd: the command
 *
 * Return: the handler's answer; or -EAGAIN, which no handler returns for a reason
 * of its own, when the call must not block but would
 */
int dmaprobe_dispatch(struct dmaprobe_ucmd *ucmd, unsigned int cmd)
{
	struct dmaprobe_group *group = ucmd->session->dd->group;
	union dmaprobe_cmd_buffer buf __uninitialized;
	const struct dmaprobe_op *op;
	unsigned int nr = _IOC_NR(cmd);
	int ret;

	if (nr >= ARRAY_SIZE(dmaprobe_ops))
		return -ENOTTY;
	op = &dmaprobe_ops[array_index_nospec(nr, ARRAY_SIZE(dmaprobe_ops))];
	if (op->cmd != cmd)
		return -ENOTTY;
	if (op->may_block && ucmd->nonblock)
		return -EAGAIN;

	ucmd->op = op;
	ucmd->cmd = &buf;
	ret = ucmd_fetch(ucmd, op);
	if (ret)
		return ret;
	if (op->self_locked) {
		ret = op->handle(ucmd);
	} else {
		if (!op_lock(group, op, ucmd->nonblock))
			return -EAGAIN;
		ret = ucmd->session->dd->unplugged ? -ENODEV : op->handle(ucmd);
		if (op->exclusive) {
			up_write(&group->lock);
			mutex_unlock(&group->turn);
		} else {
			up_read(&group->lock);
		}
	}
	if (op->writeback)
		ret = ucmd_reply(ucmd, ret);
	if (ret != -EAGAIN)
		trace_dmaprobe_op(ucmd->session, op->name, ucmd->id, ucmd->iova, ucmd->length, ret);
	return ret;
}

long dmaprobe_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct dmaprobe_ucmd ucmd = {
		.session = file->private_data,
		.ubuffer = (void __user *)arg,
	};

	return dmaprobe_dispatch(&ucmd, cmd);
}
